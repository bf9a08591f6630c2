"""FedAvg over LoRA (McMahan et al., AISTATS 2017, Algorithm 1, on the adapter only), weighted by masked record counts.

With x_i = clip_L2(local - global adapter, C), w_i = min(n_i, W), and the secure sums S_x = sum_i (w_i / W) x_i,
S_w = sum_i w_i:

    mean update = S_x W / S_w = sum_i w_i x_i / sum_i w_i            theta <- ServerOptimizer(theta, mean update)

Order of operations, the same at every party:
  * site: f = float32(w / W), the quotient taken in float64 and cast once; payload = float32(x * f), one product;
  * fold: g = float64(W) / float64(S_w), once; mean = float32(S_x * g), the product in float64, cast once.

Who learns what: everybody learns the sums; nobody learns a site's update, weight, loss or whether it was clipped.
The mean of products of A and B is not the product of their means; that is this algorithm's known bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.fixed_point import (
    ImplausibleSumError,
    SumValues,
    UpdateSum,
    clip_l2,
    l2_norm,
    quantisation_step,
)
from fl_protocol.folds.algorithm import FoldResult, RawPayloadInvalidError, RoundReport
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.server_optimizer import SERVER_OPTIMIZERS
from fl_protocol.spec.metrics import EvaluationTotals, counts_of, values_of
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout

MAX_MEAN_LOSS = 64.0
"""Nats a token: a uniform guess over 50 000 tokens costs 11. A site whose training has diverged beyond refuses."""

LOSS_RESOLUTION = 2.0**-16
"""Nats: the smallest step of a summed loss."""

_CHUNK = 1 << 16
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)
_EVAL: dict[str, np.dtype[Any]] = {"eval_loss_sum": _FLOAT64, "eval_tokens": _INT64, "eval_records": _INT64}
_TRAIN: dict[str, np.dtype[Any]] = {
    "adapter_update": np.dtype(np.float32),
    "train_loss_sum": _FLOAT64,
    "train_tokens": _INT64,
    **_EVAL,
}


class FedAvgLora:
    """The algorithm ``fedavg-lora``.

    Raw segments of a training round, as the trainer writes them: adapter_update float32 (d,), train_loss_sum and
    eval_loss_sum float64 (1,), train_tokens, eval_tokens and eval_records int64 (1,). An evaluation round has only the
    three ``eval_*``. A metric adds ``eval_<count>`` int64 (1,) for each count that it needs.
    """

    @property
    def name(self) -> str:
        """``fedavg-lora``."""
        return "fedavg-lora"

    def segments(self, spec: RunSpec, n_parameters: int, kind: RoundKind) -> PayloadLayout:
        """The payload: the update by ``clip_norm``, counts by what the spec admits, losses by 64 nats a token."""
        train_tokens = spec.local.max_tokens
        eval_tokens = spec.evaluation.max_records * spec.local.max_length
        evaluated = (
            _count("eval_records", spec.evaluation.max_records),
            _count("eval_tokens", eval_tokens),
            _loss("eval_loss_sum", eval_tokens),
            *(_count(name, eval_tokens) for name in _metric_segments(spec)),
        )
        trained = (
            Segment(name="adapter_update", kind=SegmentKind.UPDATE, length=n_parameters, bound=spec.privacy.clip_norm),
            _count("weight", spec.privacy.weight_cap),
            _count("was_clipped", 1),
            _count("train_tokens", train_tokens),
            _loss("train_loss_sum", train_tokens),
        )
        segments = evaluated if kind is RoundKind.EVALUATE else trained + evaluated
        return PayloadLayout(segments=segments, max_sites=len(spec.cohort.sites))

    def weigh(
        self, raw: Mapping[str, NDArray[Any]], *, n_records: int, spec: RunSpec, kind: RoundKind
    ) -> dict[str, NDArray[Any]]:
        """Clip once, multiply by w / W, add w and was_clipped. See ``Algorithm.weigh``."""
        expected = dict(_EVAL if kind is RoundKind.EVALUATE else _TRAIN)
        expected |= dict.fromkeys(_metric_segments(spec), _INT64)
        _check_raw(raw, expected)
        payload = {name: raw[name] for name in expected}
        if kind is RoundKind.EVALUATE:
            return payload
        if n_records < 1:
            raise RawPayloadInvalidError("a site that trained has at least one record", n_records=n_records)
        weight = min(n_records, spec.privacy.weight_cap)
        clipped, was_clipped = clip_l2(raw["adapter_update"], spec.privacy.clip_norm)
        factor = np.float32(weight / spec.privacy.weight_cap)
        payload["adapter_update"] = np.multiply(clipped, factor, dtype=np.float32)
        payload["weight"] = np.array([weight], dtype=np.int64)
        payload["was_clipped"] = np.array([int(was_clipped)], dtype=np.int64)
        return payload

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
        """The mean update, then one step of the server's optimiser. See ``Algorithm.fold``."""
        segments = self.segments(spec, layout.n_parameters, kind)
        counted = segments.max_sites if n_sites is None else n_sites
        _check_sums(sums, segments, counted)
        layout.check(state.adapter)
        eval_loss = _mean_loss(sums, "eval")
        n_eval_records = int(sums["eval_records"][:1][0])
        if kind is RoundKind.EVALUATE:
            report = RoundReport(
                train_loss=None,
                eval_loss=eval_loss,
                n_records=0,
                n_eval_records=n_eval_records,
                n_clipped=0,
                update_norm=0.0,
                metrics=_metrics(sums, spec),
            )
            return FoldResult(state=state, report=report)
        weight = int(sums["weight"][:1][0])
        # Each counted site has at least one record.
        if weight < (1 if n_sites is None else n_sites):
            raise ImplausibleSumError("the weights add up to less than one record a site", segment="weight")
        mean = _scaled(sums["adapter_update"], spec.privacy.weight_cap / weight)
        norm = l2_norm(mean)
        # Each site's update has norm <= C, so their weighted mean has; the margin is for quantisation and rounding.
        steps = counted * quantisation_step(segments, "adapter_update") * spec.privacy.weight_cap / weight
        slack = 1e-6 * spec.privacy.clip_norm + math.sqrt(mean.size) * steps / 2
        if norm > spec.privacy.clip_norm + slack:
            raise ImplausibleSumError("the mean update is longer than clip_norm", segment="adapter_update", norm=norm)
        step = SERVER_OPTIMIZERS[spec.aggregation.server.optimizer](
            state.adapter, layout.unflatten(mean, is_shared=True), state.server
        )
        report = RoundReport(
            train_loss=_mean_loss(sums, "train"),
            eval_loss=eval_loss,
            n_records=weight,
            n_eval_records=n_eval_records,
            n_clipped=int(sums["was_clipped"][:1][0]),
            update_norm=norm,
            metrics=_metrics(sums, spec),
        )
        return FoldResult(
            state=PublicState(version=state.version + 1, adapter=step.adapter, server=step.server), report=report
        )


def _scaled(total: SumValues, factor: float) -> NDArray[np.float32]:
    """``float32(total * factor)``, the product in float64; in chunks, so that no second wide vector is made."""
    if isinstance(total, UpdateSum):
        return total.scaled(factor)
    scaled = np.empty(total.shape, dtype=np.float32)
    wide = np.empty(min(_CHUNK, total.size), dtype=np.float64)
    for start in range(0, total.size, _CHUNK):
        part = total[start : start + _CHUNK]
        scaled[start : start + _CHUNK] = np.multiply(part, factor, out=wide[: part.size])
    return scaled


def _metric_segments(spec: RunSpec) -> tuple[str, ...]:
    """The segments of the run's metrics, beside those that every evaluation has."""
    return tuple(f"eval_{name}" for name in counts_of(spec.evaluation.metrics))


def _metrics(sums: Mapping[str, SumValues], spec: RunSpec) -> dict[str, float]:
    totals = EvaluationTotals(
        loss_sum=float(sums["eval_loss_sum"][:1][0]),
        n_units=int(sums["eval_tokens"][:1][0]),
        n_records=int(sums["eval_records"][:1][0]),
        counts={name: int(sums[f"eval_{name}"][:1][0]) for name in counts_of(spec.evaluation.metrics)},
    )
    return values_of(spec.evaluation.metrics, totals)


def _count(name: str, bound: int) -> Segment:
    return Segment(name=name, kind=SegmentKind.COUNT, length=1, bound=float(bound))


def _loss(name: str, max_tokens: int) -> Segment:
    bound = max_tokens * MAX_MEAN_LOSS
    return Segment(name=name, kind=SegmentKind.SCALAR, length=1, bound=bound, resolution=LOSS_RESOLUTION)


def _check_raw(raw: Mapping[str, NDArray[Any]], expected: Mapping[str, np.dtype[Any]]) -> None:
    for name in raw:
        if name not in expected:
            raise RawPayloadInvalidError("the algorithm has no raw segment of this name", segment=name)
    for name, dtype in expected.items():
        array = raw.get(name)
        if array is None:
            raise RawPayloadInvalidError("a raw segment is missing", segment=name)
        if array.dtype != dtype or array.ndim != 1 or (name != "adapter_update" and array.shape != (1,)):
            message = "a raw segment's dtype or shape is not the algorithm's"
            raise RawPayloadInvalidError(message, segment=name, dtype=str(array.dtype), shape=str(array.shape))


def _check_sums(sums: Mapping[str, SumValues], layout: PayloadLayout, counted: int) -> None:
    """Refuse sums that ``counted`` honest sites cannot have sent."""
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
                # The scalars here are losses, which are never negative.
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


def _mean_loss(sums: Mapping[str, SumValues], prefix: str) -> float | None:
    """Summed loss by summed tokens, in float64; None where there was no token."""
    tokens = int(sums[f"{prefix}_tokens"][:1][0])
    loss_sum = float(sums[f"{prefix}_loss_sum"][:1][0])
    if tokens == 0:
        if loss_sum != 0.0:
            raise ImplausibleSumError("there is a loss but no token", segment=f"{prefix}_loss_sum")
        return None
    return loss_sum / tokens
