"""IA3 by peft (Liu et al. 2022): a vector a module that rescales what it gives, or in feed-forward layers takes.

It begins as ones, so that a new adapter changes nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from peft import IA3Config, TaskType, get_peft_model

from fl_protocol.spec.adapters import AdapterSpec, Ia3Spec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array
from site_agent.training.adapters.peft_names import PEFT_NAME, peft_warnings_silenced
from site_agent.training.adapters.targets import check_targets


def attach_ia3(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Put IA3 on a base model that is already on its device, and freeze everything else.

    Raises:
        TargetModulesUnknownError: a target names no linear module of the base.
    """
    ia3 = _ia3(spec)
    check_targets(base, ia3.targets)
    config = IA3Config(
        target_modules=list(ia3.targets), feedforward_modules=list(ia3.feedforward), task_type=TaskType.CAUSAL_LM
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME, autocast_adapter_dtype=True).eval()


def ia3_config(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a release holds."""
    ia3 = _ia3(spec.adapter)
    return {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.base_model.name,
        "target_modules": sorted(ia3.targets),
        "feedforward_modules": sorted(ia3.feedforward),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def initial_ia3(tensor: TensorSpec, _unit: DrawUnit) -> Float32Array:
    """Ones."""
    return np.ones(tensor.shape, dtype=np.float32)


def set_no_dropout(_model: torch.nn.Module, _is_on: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """IA3 has none."""


def _ia3(spec: AdapterSpec) -> Ia3Spec:
    assert isinstance(spec, Ia3Spec), "the table says so"
    return spec


IA3 = AdapterHalf(attach=attach_ia3, config=ia3_config, initial=initial_ia3, set_dropout=set_no_dropout)
"""The row of the table."""
