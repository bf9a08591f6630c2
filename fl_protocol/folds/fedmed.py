"""FedMed (Wu, Liang and Wang, Sensors 2020): layer-wise attention as a ratio of two secure sums, behind a gate.

With x_u the clipped update of site u, l a layer (a tensor of the adapter) and s_u^l how far the layer has moved there:

    attentive:  f_u^l = exp(min(s_u^l / T, smax) - smax)      otherwise:  f_u^l = w_u / W, in every layer
    theta^l <- theta^l + eps (sum_u f_u^l x_u^l) / (sum_u f_u^l)              eps = 1 where it is not attentive

The ratio is the softmax over sites of the clipped distances: exp(-smax) cancels. Whether a round is attentive stands in
the public state that it starts from: S = [loss_{t-1} - loss_t < tau] on the federated mean loss of training opens the
gate for the round after t. Algorithm 1 of the paper asks the gate in the round itself.

Safety: a round publishes one combination of the updates. Were both means to be folded out of one round, as the paper's
order asks, its two sums would be two equations in the same updates, and with three sites, one of them colluding, the
updates themselves (docs/decisions/0042). f_u^l lies between exp(-smax) and 1, whatever a site has in it: no update
stands alone in a sum, not even where the threshold takes all other sites' attention. Who learns what: everybody learns,
layer by layer, the sum of the f_u^l, and how many sites were at or over the threshold; nobody a site's own.

What is verified of the paper and what is reconstructed: docs/algorithms.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.clipping import clip_l2, l2_norm
from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import quantisation_step
from fl_protocol.codec.sums import SumValues
from fl_protocol.folds.algorithm import FoldResult, Publishes, RawPayloadInvalidError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.round_sums import (
    checked_payload,
    count_segment,
    counted_sites,
    evaluation_report,
    evaluation_segments,
    mean_loss,
    raw_evaluation,
    raw_training,
    scaled,
    summed_weight,
    training_report,
    training_segments,
    weight_of,
)
from fl_protocol.folds.server_rules import SERVER_RULES
from fl_protocol.spec.attention_spec import AttentionSpec, Gate
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout

LAYER_DISTANCE = "layer_distance"
IS_ATTENTIVE = "is_attentive"
LAYER_WEIGHT = "layer_weight"
SELECTED = "selected"

_LAST_LOSS = "mediation.last_loss"
_OPEN = "mediation.is_attentive"
_RESOLUTION = 2.0**-50
"""Of a layer's weight, which is at most 1: fine enough for one record of a weight_cap of 10**9."""

_ROUNDING = 2.0**-23


class FedMed:
    """The algorithm ``fedmed``.

    Raw segments of a training round are those of ``fedavg-lora`` and, as the trainer writes them, layer_distance
    float64 (L,), in the layout's order and at least 0, and is_attentive int64 (1,), what ``is_attentive`` says.
    """

    publishes = Publishes.SUM

    @property
    def name(self) -> str:
        """``fedmed``."""
        return "fedmed"

    def segments(self, spec: RunSpec, layout: AdapterLayout, kind: RoundKind) -> PayloadLayout:
        """The payload: that of ``fedavg-lora``, a weight a layer, and whether the site is over the threshold."""
        n_layers = len(layout.tensors)
        evaluated = evaluation_segments(spec)
        trained = (
            *training_segments(spec, layout.n_parameters),
            Segment(name=LAYER_WEIGHT, kind=SegmentKind.SCALAR, length=n_layers, bound=1.0, resolution=_RESOLUTION),
            count_segment(SELECTED, 1),
        )
        segments = evaluated if kind is RoundKind.EVALUATE else trained + evaluated
        return PayloadLayout(segments=segments, max_sites=len(spec.cohort.sites))

    def weigh(
        self,
        raw: Mapping[str, NDArray[Any]],
        *,
        n_records: int,
        spec: RunSpec,
        layout: AdapterLayout,
        kind: RoundKind,
    ) -> dict[str, NDArray[Any]]:
        """Clip once, multiply each layer by its factor, add the factors. See ``Algorithm.weigh``."""
        expected = raw_evaluation(spec) if kind is RoundKind.EVALUATE else raw_training(spec)
        if kind is RoundKind.TRAIN:
            expected[LAYER_DISTANCE] = (np.dtype(np.float64), len(layout.tensors))
            expected[IS_ATTENTIVE] = (np.dtype(np.int64), 1)
        payload = checked_payload(raw, expected)
        if kind is RoundKind.EVALUATE:
            return payload
        if raw["adapter_update"].size != layout.n_parameters:
            raise RawPayloadInvalidError("the update is not of the adapter's layout", segment="adapter_update")
        distance, switch = payload.pop(LAYER_DISTANCE), int(payload.pop(IS_ATTENTIVE)[0])
        if switch not in (0, 1) or not (np.isfinite(distance).all() and (distance >= 0).all()):
            raise RawPayloadInvalidError("a distance or the gate is not one", segment=LAYER_DISTANCE)
        weight, attention = weight_of(n_records, spec), attention_of(spec)
        is_selected = l2_norm(raw["adapter_update"]) >= attention.threshold
        clipped, was_clipped = clip_l2(raw["adapter_update"], spec.privacy.clip_norm)
        if switch:
            factors = attention_factors(distance, attention, is_selected=is_selected)
        else:
            factors = np.full(len(layout.tensors), np.float32(weight / spec.privacy.weight_cap), dtype=np.float32)
        payload["adapter_update"] = _times_factors(clipped, factors, layout)
        payload[LAYER_WEIGHT] = factors.astype(np.float64)
        payload[SELECTED] = np.array([int(is_selected)], dtype=np.int64)
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
        """Layer by layer the ratio of the sums, one step of the server's rule, and the gate. See ``Algorithm.fold``."""
        segments = self.segments(spec, layout, kind)
        counted = counted_sites(sums, state, segments=segments, layout=layout, n_sites=n_sites)
        if kind is RoundKind.EVALUATE:
            return FoldResult(state=state, report=evaluation_report(sums, spec))
        attention, is_open = attention_of(spec), is_attentive(state, spec)
        summed_weight(sums, n_sites)
        factors = _layer_sums(sums, spec, is_open=is_open, n_sites=n_sites, counted=counted)
        step = attention.step if is_open else 1.0
        pieces = [(tensor.n_elements, step / factor) for tensor, factor in zip(layout.tensors, factors, strict=True)]
        mean = scaled(sums["adapter_update"], pieces)
        norm = l2_norm(mean)
        # A layer's mean is not longer than the longest of its updates; over all layers, the squares add up to at most
        # those of all sites. Without attention it is one mean, as in fedavg-lora.
        longest = step * spec.privacy.clip_norm * (math.sqrt(counted) if is_open else 1.0)
        steps = counted * quantisation_step(segments, "adapter_update") * max(factor for _, factor in pieces)
        if norm > longest * (1 + 1e-6) + math.sqrt(mean.size) * steps / 2:
            raise ImplausibleSumError("the mean update is too long", segment="adapter_update", norm=norm)
        server = spec.aggregation.server
        moved = SERVER_RULES[server.optimizer](
            state.adapter, layout.unflatten(mean, is_shared=True), state.server, server
        )
        after = {**moved.server, **_gate_after(mean_loss(sums, "train"), state, attention)}
        report = training_report(sums, spec, norm=norm)
        mediation = {"attentive": float(is_open), "selected_sites": float(sums[SELECTED][:1][0])}
        return FoldResult(
            state=PublicState(version=state.version + 1, adapter=moved.adapter, server=after),
            report=replace(report, metrics={**report.metrics, **mediation}),
        )


def attention_of(spec: RunSpec) -> AttentionSpec:
    """The run's attention; a run of this algorithm has one.

    Raises:
        RawPayloadInvalidError: the run is of another algorithm.
    """
    attention = spec.aggregation.attention
    if attention is None:
        raise RawPayloadInvalidError("the run has no aggregation.attention")
    return attention


def is_attentive(state: PublicState, spec: RunSpec) -> bool:
    """Whether the round that starts from this state weighs sites by attention. Everybody reads it off the state."""
    if attention_of(spec).gate is Gate.ALWAYS:
        return True
    found = state.server.get(_OPEN)
    return found is not None and bool(found[0])


def attention_factors(
    distance: NDArray[np.float64], attention: AttentionSpec, *, is_selected: bool
) -> NDArray[np.float32]:
    """f^l = exp(min(s^l / T, smax) - smax), float32, shape (L,), exp(-smax) .. 1; the least for a site not selected."""
    clipped = np.minimum(distance / attention.temperature, attention.max_distance)
    if not is_selected:
        clipped = np.zeros_like(clipped)
    return np.exp(clipped - attention.max_distance).astype(np.float32)


def _times_factors(
    update: NDArray[np.float32], factors: NDArray[np.float32], layout: AdapterLayout
) -> NDArray[np.float32]:
    """The update with each layer multiplied by its factor, one float32 product an element; a new vector."""
    weighed = update.copy()
    offset = 0
    for tensor, factor in zip(layout.tensors, factors, strict=True):
        piece = weighed[offset : offset + tensor.n_elements]
        np.multiply(piece, factor, out=piece)
        offset += tensor.n_elements
    return weighed


def _layer_sums(
    sums: Mapping[str, SumValues], spec: RunSpec, *, is_open: bool, n_sites: int | None, counted: int
) -> list[float]:
    """The sums of the factors, one a layer. Raises ImplausibleSumError."""
    found = [float(value) for value in sums[LAYER_WEIGHT][:]]
    slack = counted * (_RESOLUTION + _ROUNDING)
    if is_open:
        least = math.exp(-attention_of(spec).max_distance) * (1 if n_sites is None else n_sites)
        is_plausible = min(found) >= least * (1 - 1e-6) - slack
    else:
        # Without attention every layer of a site has the factor w / W.
        expected = int(sums["weight"][:1][0]) / spec.privacy.weight_cap
        is_plausible = max(abs(value - expected) for value in found) <= slack
    if not (is_plausible and min(found) > 0):
        raise ImplausibleSumError("the layers' weights are not what the counted sites can have", segment=LAYER_WEIGHT)
    return found


def _gate_after(loss: float | None, state: PublicState, attention: AttentionSpec) -> dict[str, NDArray[Any]]:
    """What the next round finds: this round's mean loss, and whether it fell by less than ``stall``.

    A round whose sites trained nothing leaves the loss as it was.
    """
    last = state.server.get(_LAST_LOSS)
    if loss is None:
        return {} if last is None else {_LAST_LOSS: last, _OPEN: np.array([0], dtype=np.int64)}
    has_stalled = last is not None and float(last[0]) - loss < attention.stall
    return {
        _LAST_LOSS: np.array([loss], dtype=np.float64),
        _OPEN: np.array([int(has_stalled)], dtype=np.int64),
    }
