"""LoRA by peft: a low-rank pair beside each targeted linear module. Begins as no change at all."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model

from fl_protocol.spec.adapters import AdapterSpec, LoraSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array
from site_agent.training.adapters.peft_names import PEFT_NAME, peft_warnings_silenced
from site_agent.training.adapters.targets import check_targets


def attach_lora(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Put LoRA on a base model that is already on its device, and freeze everything else.

    The adapter's parameters are float32 whatever the base's precision.

    Raises:
        TargetModulesUnknownError: a target names no linear module of the base.
    """
    lora = _lora(spec)
    check_targets(base, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with peft_warnings_silenced():
        model = get_peft_model(base, config, adapter_name=PEFT_NAME, autocast_adapter_dtype=True)
    # The frozen base computes without dropout; an adapter's own dropout is switched by set_lora_dropout.
    return model.eval()


def set_lora_dropout(model: torch.nn.Module, is_on: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """Switch the dropout inside the adapter, and no other."""
    for module in model.modules():
        for dropout in getattr(module, "lora_dropout", {}).values():
            dropout.train(is_on)


def lora_config(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a release holds."""
    lora = _lora(spec.adapter)
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.base_model.name,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def initial_lora(tensor: TensorSpec, unit: DrawUnit) -> Float32Array:
    """B is zero, so that the adapter changes nothing; A is uniform in +-1/sqrt(fan in), as peft draws it."""
    if ".lora_B." in tensor.name:
        return np.zeros(tensor.shape, dtype=np.float32)
    bound = 1.0 / np.sqrt(np.float64(tensor.shape[-1]))
    drawn: Float32Array = ((2.0 * unit() - 1.0) * bound).astype(np.float32).reshape(tensor.shape)
    return drawn


def _lora(spec: AdapterSpec) -> LoraSpec:
    assert isinstance(spec, LoraSpec), "the table says so"
    return spec


LORA = AdapterHalf(attach=attach_lora, config=lora_config, initial=initial_lora, set_dropout=set_lora_dropout)
"""The row of the table."""
