"""The seam of an algorithm: the segments that it sums, a site's half before encoding, and the fold of the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from fl_protocol.codec.sums import SumValues
from fl_protocol.errors import ProtocolError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout


class RawPayloadInvalidError(ProtocolError):
    """What a trainer wrote is not what the algorithm's site half needs."""

    code = "raw-payload-invalid"


class Publishes(StrEnum):
    """What of a round is published beyond those who make and check its sum (decision 0046)."""

    SUM = "sum"
    """The sum itself may be kept for as long as the run is."""
    FOLD = "fold"
    """Only what the fold made of it: the sum goes when the round's audit window closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What a round's sums say, for people. Every figure is over the counted sites together.

    Attributes:
        train_loss: mean loss of a trained unit, such as a completion token; None where nothing was trained.
        eval_loss: mean loss of a held-out unit under the adapter that the round started from; None where
            nothing was evaluated.
        n_records: the sum of the weights, min(records, weight_cap) of each site; 0 in an evaluation round.
        n_eval_records: held-out records that were evaluated.
        n_clipped: how many sites' updates were longer than clip_norm.
        update_norm: L2 norm of the mean update. For display: its last bits may differ between machines.
        metrics: the run's metrics by name, each from sums; for display as well. One without a value is left out.
    """

    train_loss: float | None
    eval_loss: float | None
    n_records: int
    n_eval_records: int
    n_clipped: int
    update_norm: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """The public state after a round, and what the round's sums say."""

    state: PublicState
    report: RoundReport


class Algorithm(Protocol):
    """One way to learn from sums. Its halves are pure, and what they share is only the segments."""

    @property
    def name(self) -> str:
        """The name in ``aggregation.algorithm``."""
        ...

    @property
    def publishes(self) -> Publishes:
        """What of a round is published."""
        ...

    def segments(self, spec: RunSpec, layout: AdapterLayout, kind: RoundKind) -> PayloadLayout:
        """The payload of a round of this kind over an adapter of this layout, for at most the spec's sites."""
        ...

    def weigh(
        self,
        raw: Mapping[str, NDArray[Any]],
        *,
        n_records: int,
        spec: RunSpec,
        layout: AdapterLayout,
        kind: RoundKind,
    ) -> dict[str, NDArray[Any]]:
        """The agent's half: what the trainer wrote, clipped and weighted, as the segments of ``segments``.

        Raises:
            RawPayloadInvalidError: a raw segment is missing, unknown or not of its dtype, or there is no record.
            NonFiniteUpdateError: the update has an element that is NaN or infinite.
        """
        ...

    def fold(
        self,
        sums: Mapping[str, SumValues],
        state: PublicState,
        *,
        spec: RunSpec,
        layout: AdapterLayout,
        kind: RoundKind,
        n_sites: int | None = None,
    ) -> FoldResult:
        """The next public state from decoded sums. Coordinator and sites get the same bytes.

        Args:
            sums: what ``read_sums`` or ``decode_sums`` returned; one that was given up is used up.
            state: what the round started from.
            spec: the approved run.
            layout: the adapter's layout, of the digest that the spec names.
            kind: the round's kind.
            n_sites: how many sites were counted; None: the bounds are those of the whole roster.

        Raises:
            ImplausibleSumError: the sums are outside what the counted sites can have sent.
            AdapterTensorError: the state is not of this layout.
        """
        ...
