"""Soft prompts and prefixes by peft: virtual tokens that are trained, before a text that the frozen model reads.

Both change the sequence, so that such a model is trained in the plain way, a row an example (``completion_loss``).
"""

from __future__ import annotations

import numpy as np
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

from fl_protocol.spec.adapters import AdapterSpec, PrefixSpec, PromptSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array
from site_agent.training.adapters.peft_names import PEFT_NAME, peft_warnings_silenced


def attach_prompt(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Put a soft prompt on a base model, and freeze everything else: float32, shape (virtual tokens, hidden size)."""
    config = PromptTuningConfig(
        num_virtual_tokens=_virtual_tokens(spec),
        prompt_tuning_init=PromptTuningInit.RANDOM,
        task_type=TaskType.CAUSAL_LM,
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME).eval()


def attach_prefix(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Put a prefix on a base model, and freeze everything else.

    It is float32, of shape (virtual tokens, 2 x layers x width of a layer's keys).
    """
    config = PrefixTuningConfig(
        num_virtual_tokens=_virtual_tokens(spec), prefix_projection=False, task_type=TaskType.CAUSAL_LM
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME).eval()


def prompt_config(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a released soft prompt holds."""
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.base_model.name,
        "num_virtual_tokens": _virtual_tokens(spec.adapter),
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }


def prefix_config(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a released prefix holds."""
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.base_model.name,
        "num_virtual_tokens": _virtual_tokens(spec.adapter),
        "prefix_projection": False,
        "inference_mode": True,
    }


def initial_virtual_tokens(tensor: TensorSpec, unit: DrawUnit) -> Float32Array:
    """Uniform in +-1/sqrt(width of a row): small beside real tokens, and no two virtual tokens alike."""
    bound = 1.0 / np.sqrt(np.float64(tensor.shape[-1]))
    drawn: Float32Array = ((2.0 * unit() - 1.0) * bound).astype(np.float32).reshape(tensor.shape)
    return drawn


def set_no_dropout(_model: torch.nn.Module, _is_on: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """Virtual tokens have none."""


def _virtual_tokens(spec: AdapterSpec) -> int:
    assert isinstance(spec, PromptSpec | PrefixSpec), "the table says so"
    return spec.virtual_tokens


PROMPT = AdapterHalf(
    attach=attach_prompt, config=prompt_config, initial=initial_virtual_tokens, set_dropout=set_no_dropout
)
PREFIX = AdapterHalf(
    attach=attach_prefix, config=prefix_config, initial=initial_virtual_tokens, set_dropout=set_no_dropout
)
"""The rows of the table."""
