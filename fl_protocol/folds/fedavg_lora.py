"""FedAvg over LoRA (McMahan et al., AISTATS 2017, Algorithm 1, on the adapter only), weighted by masked record counts.

With x_i = clip_L2(local - global adapter, C), w_i = min(n_i, W), and the secure sums S_x = sum_i (w_i / W) x_i,
S_w = sum_i w_i:

    mean update = S_x W / S_w = sum_i w_i x_i / sum_i w_i            theta <- ServerRule(theta, mean update)

Order of operations, the same at every party:
  * site: f = float32(w / W), the quotient taken in float64 and cast once; payload = float32(x * f), one product;
  * fold: g = float64(W) / float64(S_w), once; mean = float32(S_x * g), the product in float64, cast once.

Who learns what: everybody learns the sums; nobody learns a site's update, weight, loss or whether it was clipped.
The mean of products of A and B is not the product of their means; that is this algorithm's known bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.clipping import clip_l2, l2_norm
from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import quantisation_step
from fl_protocol.codec.sums import SumValues
from fl_protocol.folds.algorithm import FoldResult, Publishes
from fl_protocol.folds.control_variate import (
    CONTROL_UPDATE,
    COUNTED,
    check_control,
    control_segments,
    fold_control,
    has_control,
)
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.round_sums import (
    checked_payload,
    counted_sites,
    evaluation_report,
    evaluation_segments,
    raw_evaluation,
    raw_training,
    scaled,
    summed_weight,
    training_report,
    training_segments,
    weight_of,
)
from fl_protocol.folds.server_rules import SERVER_RULES
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout


class FedAvgLora:
    """The algorithm ``fedavg-lora``.

    Raw segments of a training round, as the trainer writes them: adapter_update float32 (d,), train_loss_sum and
    eval_loss_sum float64 (1,), train_tokens, eval_tokens and eval_records int64 (1,). An evaluation round has only the
    three ``eval_*``. A metric adds ``eval_<count>`` int64 (1,) for each count that it needs; where it compares sites,
    the trainer writes what ``site_comparison`` makes the counts of.
    """

    publishes = Publishes.SUM

    @property
    def name(self) -> str:
        """``fedavg-lora``."""
        return "fedavg-lora"

    def segments(self, spec: RunSpec, layout: AdapterLayout, kind: RoundKind) -> PayloadLayout:
        """The payload: the update by ``clip_norm``, counts by what the spec admits, losses by 64 nats a token."""
        evaluated = evaluation_segments(spec)
        trained = (
            *training_segments(spec, layout.n_parameters),
            *(control_segments(spec, layout.n_parameters) if has_control(spec) else ()),
        )
        segments = evaluated if kind is RoundKind.EVALUATE else trained + evaluated
        return PayloadLayout(segments=segments, max_sites=len(spec.cohort.sites))

    def weigh(
        self,
        raw: Mapping[str, NDArray[Any]],
        *,
        n_records: int,
        spec: RunSpec,
        layout: AdapterLayout,  # noqa: ARG002 - a weight for all layers
        kind: RoundKind,
    ) -> dict[str, NDArray[Any]]:
        """Clip once, multiply by w / W, add w and was_clipped. See ``Algorithm.weigh``."""
        expected = raw_evaluation(spec) if kind is RoundKind.EVALUATE else raw_training(spec)
        if kind is RoundKind.TRAIN and has_control(spec):
            expected[CONTROL_UPDATE] = (np.dtype(np.float32), None)
        payload = checked_payload(raw, expected)
        if kind is RoundKind.EVALUATE:
            return payload
        weight = weight_of(n_records, spec)
        clipped, was_clipped = clip_l2(raw["adapter_update"], spec.privacy.clip_norm)
        factor = np.float32(weight / spec.privacy.weight_cap)
        payload["adapter_update"] = np.multiply(clipped, factor, dtype=np.float32)
        payload["weight"] = np.array([weight], dtype=np.int64)
        payload["was_clipped"] = np.array([int(was_clipped)], dtype=np.int64)
        if has_control(spec):
            # Safety: with the weight of the update. Two sums of one update under two weights would be two equations.
            payload[CONTROL_UPDATE] = np.multiply(raw[CONTROL_UPDATE], factor, dtype=np.float32)
            payload[COUNTED] = np.array([1], dtype=np.int64)
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
        segments = self.segments(spec, layout, kind)
        counted = counted_sites(sums, state, segments=segments, layout=layout, n_sites=n_sites)
        if kind is RoundKind.EVALUATE:
            return FoldResult(state=state, report=evaluation_report(sums, spec))
        weight = summed_weight(sums, n_sites)
        control: dict[str, NDArray[np.float32]] = {}
        if has_control(spec):
            if n_sites is not None and int(sums[COUNTED][:1][0]) != n_sites:
                raise ImplausibleSumError("a counted site did not count itself", segment=COUNTED)
            control = _control_after(
                sums, state, spec=spec, layout=layout, payload=segments, n_sites=counted, weight=weight
            )
        mean = scaled(sums["adapter_update"], [(layout.n_parameters, spec.privacy.weight_cap / weight)])
        norm = l2_norm(mean)
        # Each site's update has norm <= C, so their weighted mean has; the margin is for quantisation and rounding.
        steps = counted * quantisation_step(segments, "adapter_update") * spec.privacy.weight_cap / weight
        slack = 1e-6 * spec.privacy.clip_norm + math.sqrt(mean.size) * steps / 2
        if norm > spec.privacy.clip_norm + slack:
            raise ImplausibleSumError("the mean update is longer than clip_norm", segment="adapter_update", norm=norm)
        server = spec.aggregation.server
        step = SERVER_RULES[server.optimizer](
            state.adapter, layout.unflatten(mean, is_shared=True), state.server, server
        )
        return FoldResult(
            state=PublicState(version=state.version + 1, adapter=step.adapter, server={**step.server, **control}),
            report=training_report(sums, spec, norm=norm),
        )


def _control_after(
    sums: Mapping[str, SumValues],
    state: PublicState,
    *,
    spec: RunSpec,
    layout: AdapterLayout,
    payload: PayloadLayout,
    n_sites: int,
    weight: int,
) -> dict[str, NDArray[np.float32]]:
    """The server's next control variate; the update's sum is only read, the control's is used up."""
    # Rounds of training are numbered as the states that they start from.
    check_control(
        sums,
        state.server,
        spec=spec,
        layout=layout,
        payload=payload,
        round_index=state.version,
        n_sites=n_sites,
    )
    share = int(sums[COUNTED][:1][0]) / len(spec.cohort.sites)
    mean_step = scaled(sums[CONTROL_UPDATE], [(layout.n_parameters, share * spec.privacy.weight_cap / weight)])
    return fold_control(state.server, mean_step, layout=layout)
