"""The kind ``full``: the model itself, every parameter of it, drawn from the run's seed and trained from there."""

from __future__ import annotations

import numpy as np
import torch

from fl_protocol.spec.adapters import AdapterSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array

INITIAL_STD = 0.02
"""Standard deviation of a drawn weight, as in GPT-2 (Radford et al. 2019)."""


def attach_full(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Every parameter float32 and with a gradient. Tied parameters stay one, under the name that comes first."""
    del spec
    return base.float().requires_grad_(requires_grad=True).eval()


def full_config(spec: RunSpec) -> dict[str, object]:
    """What says that a release is a whole model; no library reads it."""
    return {"adapter_type": "FULL", "task_type": "CAUSAL_LM", "base_model_name_or_path": spec.base_model.name}


def initial_full(tensor: TensorSpec, unit: DrawUnit) -> Float32Array:
    """Biases are 0, scales of norms 1, and weights uniform with mean 0 and standard deviation ``INITIAL_STD``."""
    if tensor.name.endswith(".bias"):
        return np.zeros(tensor.shape, dtype=np.float32)
    if len(tensor.shape) == 1:
        return np.ones(tensor.shape, dtype=np.float32)
    # A uniform number in +-h has standard deviation h / sqrt(3).
    half_width = INITIAL_STD * np.sqrt(np.float64(3.0))
    drawn: Float32Array = ((2.0 * unit() - 1.0) * half_width).astype(np.float32).reshape(tensor.shape)
    return drawn


def set_no_dropout(model: torch.nn.Module, is_on: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """There is no dropout to switch: the model's own stays off."""
    del model, is_on


FULL = AdapterHalf(attach=attach_full, config=full_config, initial=initial_full, set_dropout=set_no_dropout)
"""The row of the table."""
