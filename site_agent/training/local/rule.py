"""The seam of a local rule: what it adds to the gradient, and what it hands over when the round's steps are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout

Float32Array = NDArray[np.float32]
Parameters = Mapping[str, torch.nn.Parameter]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundStart:
    """What a round starts from.

    Attributes:
        spec: the run. round_index: the round, from 0. layout: the adapter's.
        state: the public state that was received and checked.
        private: what the rule left at this site in the last round that this site was counted in; empty before it.
    """

    spec: RunSpec
    round_index: int
    layout: AdapterLayout
    state: PublicState
    private: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuleOutcome:
    """What a rule hands over after the last step.

    Attributes:
        segments: raw segments that it adds to the payload.
        private: what becomes this site's private state if the round counts this site; None where the rule has none.
            Safety: it tells as much as the update, and stays at the site.
    """

    segments: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    private: Mapping[str, Float32Array] | None = None


class LocalRuleHalf(Protocol):
    """One rule. Stateless: everything is in the start of the round and in the parameters."""

    def correction(self, start: RoundStart, parameters: Parameters) -> Callable[[], None]:
        """What changes the gradients of ``parameters`` in place, called before each step of the optimiser.

        Raises:
            AdapterTensorError: the private or the public state is not of this layout.
        """
        ...

    def finish(self, start: RoundStart, update: Float32Array) -> RuleOutcome:
        """What follows from the raw update, local minus global adapter, float32, shape (d,).

        Raises:
            AdapterTensorError: the private or the public state is not of this layout.
        """
        ...


def tensors_like(parameters: Parameters, arrays: Mapping[str, Float32Array]) -> dict[str, torch.Tensor]:
    """Named arrays as tensors, each on the device and of the precision of the parameter of its name."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(arrays[name])).to(
            device=parameter.device, dtype=parameter.dtype, copy=True
        )
        for name, parameter in parameters.items()
    }
