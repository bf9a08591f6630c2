"""The seam of an adapter kind in the trainer: how it is put on a model, and what it begins as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_protocol.spec.adapters import AdapterSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec

Float32Array = NDArray[np.float32]
DrawUnit = Callable[[], NDArray[np.float64]]
"""Draws as many numbers as a tensor has elements, uniform in [0, 1), from the run's seed and the tensor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHalf:
    """One kind of adapter.

    Attributes:
        attach: puts it on a base that is on its device, freezes everything else, and returns what is trained, in
            evaluation mode; the adapter's parameters are float32 whatever the base's precision. Raises TrainerError.
        config: what ``adapter_config.json`` of a release holds: what the run says, and nothing that a version of a
            library adds.
        initial: one tensor of adapter v0, float32 of the tensor's shape; the same bytes on every machine.
        set_dropout: switches the dropout inside the adapter, and no other.
    """

    attach: Callable[[torch.nn.Module, AdapterSpec], torch.nn.Module]
    config: Callable[[RunSpec], dict[str, object]]
    initial: Callable[[TensorSpec, DrawUnit], Float32Array]
    set_dropout: Callable[[torch.nn.Module, bool], None]
