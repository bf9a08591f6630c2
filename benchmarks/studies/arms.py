"""The arms of a study's table: the same number of optimiser steps, the same held-out records, other training records.

    before     adapter v0
    federated  every round, each site trains from the global adapter; their updates are clipped, weighed and folded by
               the run's own algorithm, over a plain float64 sum or through the real secure sum
    pooled     all sites' training records in one place; no federation could do this
    local      one site's training records
    without    as federated, among all sites but one

An arm trains ``rounds`` times ``steps`` optimiser steps in a row, with one learning-rate schedule over all of them and
the optimiser's moments empty at each round, so that nothing but the records and the averaging differs. What the arms
use of the machine is not equal: a federated adapter is the mean of as many paths as there are sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.splits import SiteParts
from benchmarks.studies.workshop import NOTHING_KEPT, Workshop
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.sums import SumValues, decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import Federation

POOLED_SITE = "pooled"
"""The name from which the pooled arm's draws are seeded."""

Payload = Mapping[str, NDArray[Any]]
AddUp = Callable[[Mapping[SiteId, Payload], PayloadLayout, int], Mapping[str, SumValues]]
"""Adds up the payloads of one round: by site, with the payload's layout and the round's index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """An arm's adapter, the optimiser steps that any one adapter took in a row, and the norms of all updates."""

    state: PublicState
    optimiser_steps: int
    update_norms: tuple[float, ...]


def plain_sum(payloads: Mapping[SiteId, Payload], layout: PayloadLayout, round_index: int) -> Mapping[str, SumValues]:
    """The oracle: every segment added up in float64, counts as integers; nothing is encoded, nothing is masked."""
    del round_index
    sums: dict[str, SumValues] = {}
    for segment in layout.segments:
        parts = [payload[segment.name] for payload in payloads.values()]
        wide = np.int64 if np.issubdtype(parts[0].dtype, np.integer) else np.float64
        sums[segment.name] = np.sum([part.astype(wide) for part in parts], axis=0)
    return sums


def secure_sum(payloads: Mapping[SiteId, Payload], layout: PayloadLayout, round_index: int) -> Mapping[str, SumValues]:
    """The same through the real protocol, all its parties in this process: encoded, masked, unmasked, decoded."""
    federation = Federation(tuple(sorted(payloads)), layout, seed="study", params=SecAggParams())
    vectors = {site: encode_payload(payload, layout) for site, payload in payloads.items()}
    outcome = federation.exchange(vectors, opened=federation.open_exchange(round_index=round_index))
    return decode_sums(outcome.total, layout, n_sites=len(payloads))


def train_federated(
    workshop: Workshop,
    spec: RunSpec,
    sites: Sequence[SiteParts[Any]],
    *,
    records_of: Callable[[SiteParts[Any]], Sequence[Any]],
    add_up: AddUp = plain_sum,
) -> ArmResult:
    """The run's own algorithm over all sites.

    Args:
        workshop: trains.
        spec: the run.
        sites: its weight is the number of records of its dataset, as in a real round.
        records_of: which of a site's records are trained on.
        add_up: how a round's payloads are added.
    """
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    segments = algorithm.segments(spec, workshop.layout, RoundKind.TRAIN)
    state = workshop.initial_state(spec)
    steps: dict[str, int] = {}
    # What a local rule keeps at its site between rounds: every round here counts every site.
    kept: dict[str, Mapping[str, NDArray[Any]]] = {}
    norms: list[float] = []
    for round_index in range(spec.rounds):
        payloads: dict[SiteId, Payload] = {}
        for site in sites:
            trained = workshop.train_round(
                spec,
                state,
                site=site.name,
                records=records_of(site),
                round_index=round_index,
                private=kept.get(site.name, NOTHING_KEPT),
            )
            kept[site.name] = trained.private
            norms.append(_norm_of(trained.raw))
            steps[site.name] = steps.get(site.name, 0) + trained.n_steps
            payloads[SiteId(site.name)] = algorithm.weigh(
                trained.raw, n_records=site.n_records, spec=spec, layout=workshop.layout, kind=RoundKind.TRAIN
            )
        sums = add_up(payloads, segments, round_index)
        folded = algorithm.fold(
            sums, state, spec=spec, layout=workshop.layout, kind=RoundKind.TRAIN, n_sites=len(sites)
        )
        state = folded.state
    return ArmResult(state=state, optimiser_steps=max(steps.values()), update_norms=tuple(norms))


def train_alone(workshop: Workshop, spec: RunSpec, *, site: str, records: Sequence[Any]) -> ArmResult:
    """As many steps in a row on one set of records: nothing is clipped and nothing averaged.

    Args:
        workshop: trains.
        spec: the run.
        site: the name from which the draws are seeded.
        records: what is trained on.
    """
    layout = workshop.layout
    state = workshop.initial_state(spec)
    n_steps = 0
    norms: list[float] = []
    for round_index in range(spec.rounds):
        trained = workshop.train_round(spec, state, site=site, records=records, round_index=round_index)
        norms.append(_norm_of(trained.raw))
        n_steps += trained.n_steps
        moved = layout.flatten(state.adapter) + trained.raw["adapter_update"]
        state = PublicState(version=state.version + 1, adapter=layout.unflatten(moved))
    return ArmResult(state=state, optimiser_steps=n_steps, update_norms=tuple(norms))


def _norm_of(raw: Payload) -> float:
    update = raw["adapter_update"].astype(np.float64)
    return math.sqrt(float(update @ update))
