"""The kind ``published-codes``: no weights at all. Begins as nothing published."""

from __future__ import annotations

import numpy as np
import torch

from fl_protocol.spec.adapters import AdapterSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array
from site_agent.training.errors import BaseModelInvalidError


def attach_nothing(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """There is nothing to put on a model.

    Raises:
        BaseModelInvalidError: always.
    """
    del base, spec
    raise BaseModelInvalidError("published codes are counted, not trained")


def no_config(spec: RunSpec) -> dict[str, object]:
    """What says that a release is a list of published codes; no library reads it."""
    return {"adapter_type": "PUBLISHED_CODES", "base_model_name_or_path": spec.base_model.name}


def nothing_published(tensor: TensorSpec, unit: DrawUnit) -> Float32Array:
    """Zero for each code."""
    del unit
    return np.zeros(tensor.shape, dtype=np.float32)


def set_no_dropout(model: torch.nn.Module, is_on: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """There is none."""
    del model, is_on


PUBLISHED_CODES = AdapterHalf(
    attach=attach_nothing, config=no_config, initial=nothing_published, set_dropout=set_no_dropout
)
"""The row of the table."""
