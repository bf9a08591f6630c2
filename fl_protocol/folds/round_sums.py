"""What every algorithm's round is made of beside its own: counts, losses, the weight; their checks and their report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.sums import SumValues, UpdateSum
from fl_protocol.folds.algorithm import RawPayloadInvalidError, RoundReport
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.site_comparison import INITIAL_LOSS, INITIAL_UNITS, flags_of
from fl_protocol.spec.metrics import (
    MOST_A_UNIT,
    SITE_FLAGS,
    EvaluationTotals,
    are_sites_compared,
    counted_by_trainer,
    counts_of,
    values_of,
)
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout

MAX_MEAN_LOSS = 64.0
"""Nats a token: a uniform guess over 50 000 tokens costs 11. A site whose training has diverged beyond refuses."""

LOSS_RESOLUTION = 2.0**-16
"""Nats: the smallest step of a summed loss."""

RawSegment = tuple[np.dtype[Any], int | None]
"""The dtype of a raw segment, and its length; None where the payload's layout decides."""

_CHUNK = 1 << 16
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)


def evaluation_segments(spec: RunSpec) -> tuple[Segment, ...]:
    """What an evaluation adds: records, units of the loss, the loss, and the counts of the run's metrics."""
    eval_tokens = spec.evaluation.max_records * spec.local.max_length
    return (
        count_segment("eval_records", spec.evaluation.max_records),
        count_segment("eval_tokens", eval_tokens),
        loss_segment("eval_loss_sum", eval_tokens),
        *(
            count_segment(f"eval_{name}", 1 if name in SITE_FLAGS else eval_tokens * MOST_A_UNIT.get(name, 1))
            for name in counts_of(spec.evaluation.metrics)
        ),
    )


def training_segments(spec: RunSpec, n_parameters: int) -> tuple[Segment, ...]:
    """What training adds: the update by ``clip_norm``, the weight, units by what the spec admits, and the loss."""
    train_tokens = spec.local.max_tokens
    return (
        Segment(name="adapter_update", kind=SegmentKind.UPDATE, length=n_parameters, bound=spec.privacy.clip_norm),
        count_segment("weight", spec.privacy.weight_cap),
        count_segment("was_clipped", 1),
        count_segment("train_tokens", train_tokens),
        loss_segment("train_loss_sum", train_tokens),
    )


def raw_evaluation(spec: RunSpec) -> dict[str, RawSegment]:
    """The raw segments of an evaluation."""
    metrics = spec.evaluation.metrics
    compared: dict[str, RawSegment] = {INITIAL_LOSS: (_FLOAT64, 1), INITIAL_UNITS: (_INT64, 1)}
    return {
        "eval_loss_sum": (_FLOAT64, 1),
        "eval_tokens": (_INT64, 1),
        "eval_records": (_INT64, 1),
        **{f"eval_{name}": (_INT64, 1) for name in counted_by_trainer(metrics)},
        **(compared if are_sites_compared(metrics) else {}),
    }


def raw_training(spec: RunSpec) -> dict[str, RawSegment]:
    """The raw segments of a training round, its evaluation's among them."""
    return {
        "adapter_update": (np.dtype(np.float32), None),
        "train_loss_sum": (_FLOAT64, 1),
        "train_tokens": (_INT64, 1),
        **raw_evaluation(spec),
    }


def weight_of(n_records: int, spec: RunSpec) -> int:
    """A site's weight: its records, at most ``weight_cap``.

    Raises:
        RawPayloadInvalidError: there is no record.
    """
    if n_records < 1:
        raise RawPayloadInvalidError("a site that trained has at least one record", n_records=n_records)
    return min(n_records, spec.privacy.weight_cap)


def summed_weight(sums: Mapping[str, SumValues], n_sites: int | None) -> int:
    """The sum of the weights, at least one a counted site. Raises ImplausibleSumError."""
    weight = int(sums["weight"][:1][0])
    # Each counted site has at least one record.
    if weight < (1 if n_sites is None else n_sites):
        raise ImplausibleSumError("the weights add up to less than one record a site", segment="weight")
    return weight


def evaluation_report(sums: Mapping[str, SumValues], spec: RunSpec) -> RoundReport:
    """The report of a round without training. Raises ImplausibleSumError."""
    return RoundReport(
        train_loss=None,
        eval_loss=mean_loss(sums, "eval"),
        n_records=0,
        n_eval_records=int(sums["eval_records"][:1][0]),
        n_clipped=0,
        update_norm=0.0,
        metrics=metrics_of(sums, spec),
    )


def training_report(sums: Mapping[str, SumValues], spec: RunSpec, *, norm: float) -> RoundReport:
    """The report of a training round whose mean update has this norm. Raises ImplausibleSumError."""
    return RoundReport(
        train_loss=mean_loss(sums, "train"),
        eval_loss=mean_loss(sums, "eval"),
        n_records=int(sums["weight"][:1][0]),
        n_eval_records=int(sums["eval_records"][:1][0]),
        n_clipped=int(sums["was_clipped"][:1][0]),
        update_norm=norm,
        metrics=metrics_of(sums, spec),
    )


def scaled(total: SumValues, pieces: Sequence[tuple[int, float]]) -> NDArray[np.float32]:
    """``float32(total * factor)``, the product in float64; in chunks, so that no second wide vector is made.

    Args:
        total: shape (d,).
        pieces: how many elements, and their factor, from the first element on; together d elements.
    """
    if isinstance(total, UpdateSum):
        return total.scaled_in_pieces(pieces)
    result = np.empty(total.shape, dtype=np.float32)
    offset = 0
    for n_elements, factor in pieces:
        for start in range(offset, offset + n_elements, _CHUNK):
            place = slice(start, min(start + _CHUNK, offset + n_elements))
            result[place] = np.multiply(total[place], factor, dtype=np.float64)
        offset += n_elements
    return result


def metrics_of(sums: Mapping[str, SumValues], spec: RunSpec) -> dict[str, float]:
    """The run's metrics over all counted sites together.

    Raises:
        ImplausibleSumError: more sites were made worse than compared.
    """
    totals = EvaluationTotals(
        loss_sum=float(sums["eval_loss_sum"][:1][0]),
        n_units=int(sums["eval_tokens"][:1][0]),
        n_records=int(sums["eval_records"][:1][0]),
        counts={name: int(sums[f"eval_{name}"][:1][0]) for name in counts_of(spec.evaluation.metrics)},
    )
    if totals.counts.get("made_worse", 0) > totals.counts.get("compared", 0):
        raise ImplausibleSumError("more sites were made worse than compared", segment="eval_made_worse")
    return values_of(spec.evaluation.metrics, totals)


def count_segment(name: str, bound: int) -> Segment:
    """One exact count, 0 .. bound at a site."""
    return Segment(name=name, kind=SegmentKind.COUNT, length=1, bound=float(bound))


def loss_segment(name: str, max_tokens: int) -> Segment:
    """A summed loss over at most ``max_tokens`` units at a site."""
    bound = max_tokens * MAX_MEAN_LOSS
    return Segment(name=name, kind=SegmentKind.SCALAR, length=1, bound=bound, resolution=LOSS_RESOLUTION)


def checked_payload(raw: Mapping[str, NDArray[Any]], expected: Mapping[str, RawSegment]) -> dict[str, NDArray[Any]]:
    """What a trainer wrote, once ``check_raw`` has nothing against it, with this site's flags in place of v0's loss.

    Raises:
        RawPayloadInvalidError: as ``check_raw`` and ``flags_of``.
    """
    check_raw(raw, expected)
    payload = {name: raw[name] for name in expected}
    if INITIAL_LOSS in payload:
        payload |= flags_of(payload)
        del payload[INITIAL_LOSS], payload[INITIAL_UNITS]
    return payload


def check_raw(raw: Mapping[str, NDArray[Any]], expected: Mapping[str, RawSegment]) -> None:
    """Refuse what is not exactly the raw segments that an algorithm's site half needs.

    Raises:
        RawPayloadInvalidError: one is missing, unknown, or not of its dtype and length.
    """
    for name in raw:
        if name not in expected:
            raise RawPayloadInvalidError("the algorithm has no raw segment of this name", segment=name[:80])
    for name, (dtype, length) in expected.items():
        array = raw.get(name)
        if array is None:
            raise RawPayloadInvalidError("a raw segment is missing", segment=name)
        if array.dtype != dtype or array.ndim != 1 or length not in (None, array.size):
            message = "a raw segment's dtype or shape is not the algorithm's"
            raise RawPayloadInvalidError(message, segment=name, dtype=str(array.dtype), shape=str(array.shape))


def check_sums(sums: Mapping[str, SumValues], layout: PayloadLayout, counted: int) -> None:
    """Refuse sums that ``counted`` honest sites cannot have sent. Raises ImplausibleSumError."""
    if not 1 <= counted <= layout.max_sites or set(sums) != {segment.name for segment in layout.segments}:
        raise ImplausibleSumError("the sums are not those of this round's payload", n_sites=counted)
    for segment in layout.segments:
        values = sums[segment.name]
        if values.shape != (segment.length,):
            raise ImplausibleSumError("a sum has another shape than its segment", segment=segment.name)
        match segment.kind:
            case SegmentKind.COUNT:
                low, high = 0.0, counted * segment.bound
            case SegmentKind.SCALAR:
                # The scalars are losses and layer weights, which are never negative.
                low, high = 0.0, counted * (segment.bound + segment.resolution)
            case SegmentKind.UPDATE:
                # Decoding has checked the integers; the margin covers the division by the scale.
                high = counted * segment.bound * (1 + 1e-6)
                low = -high
            case _:
                assert_never(segment.kind)
        # NaN makes the comparison false.
        if not (float(values.min()) >= low and float(values.max()) <= high):
            raise ImplausibleSumError("a sum is outside what the counted sites can have sent", segment=segment.name)


def counted_sites(
    sums: Mapping[str, SumValues],
    state: PublicState,
    *,
    segments: PayloadLayout,
    layout: AdapterLayout,
    n_sites: int | None,
) -> int:
    """What every fold begins with: sums that as many honest sites can have sent, and a state of the adapter's layout.

    Args:
        sums: of the round.
        state: what the round started from.
        segments: of the round's payload.
        layout: the adapter's.
        n_sites: as ``Algorithm.fold`` has it.

    Returns:
        How many sites the sums are bounded by: those counted, or the whole roster.

    Raises:
        ImplausibleSumError, AdapterTensorError: as ``Algorithm.fold``.
    """
    counted = segments.max_sites if n_sites is None else n_sites
    check_sums(sums, segments, counted)
    layout.check(state.adapter)
    return counted


def mean_loss(sums: Mapping[str, SumValues], prefix: str) -> float | None:
    """Summed loss by summed tokens, in float64; None where there was no token. Raises ImplausibleSumError."""
    tokens = int(sums[f"{prefix}_tokens"][:1][0])
    loss_sum = float(sums[f"{prefix}_loss_sum"][:1][0])
    if tokens == 0:
        if loss_sum != 0.0:
            raise ImplausibleSumError("there is a loss but no token", segment=f"{prefix}_loss_sum")
        return None
    return loss_sum / tokens
