"""What an evaluation measures: for each metric the counts that a site adds to the sum, and the value that follows.

A metric is a function of sums over all counted sites: no site's own value is ever sent. A new metric is one member and
one row of the table; its task's ``evaluate`` fills the counts.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fl_protocol.spec.tasks.task_spec import TaskKind


class Metric(StrEnum):
    """What an evaluation measures."""

    LOSS = "loss"
    PERPLEXITY = "perplexity"
    PREFERENCE_ACCURACY = "preference-accuracy"
    PREFERENCE_MARGIN = "preference-margin"
    PRECISION_AT_1_NEXT_NEW = "precision-at-1-next-new"
    PRECISION_AT_1_NEXT_OLD = "precision-at-1-next-old"
    PRECISION_AT_1_NEXT_ALL = "precision-at-1-next-all"
    PRECISION_AT_1_TIME_RANGE_NEW = "precision-at-1-time-range-new"
    PRECISION_AT_1_TIME_RANGE_OLD = "precision-at-1-time-range-old"
    PRECISION_AT_1_TIME_RANGE_ALL = "precision-at-1-time-range-all"
    PRECISION_AT_1_ANY_NEW = "precision-at-1-any-new"
    PRECISION_AT_1_ANY_OLD = "precision-at-1-any-old"
    PRECISION_AT_1_ANY_ALL = "precision-at-1-any-all"
    PRECISION_AT_3_NEXT_NEW = "precision-at-3-next-new"
    PRECISION_AT_3_NEXT_OLD = "precision-at-3-next-old"
    PRECISION_AT_3_NEXT_ALL = "precision-at-3-next-all"
    PRECISION_AT_3_TIME_RANGE_NEW = "precision-at-3-time-range-new"
    PRECISION_AT_3_TIME_RANGE_OLD = "precision-at-3-time-range-old"
    PRECISION_AT_3_TIME_RANGE_ALL = "precision-at-3-time-range-all"
    PRECISION_AT_3_ANY_NEW = "precision-at-3-any-new"
    PRECISION_AT_3_ANY_OLD = "precision-at-3-any-old"
    PRECISION_AT_3_ANY_ALL = "precision-at-3-any-all"
    PRECISION_AT_5_NEXT_NEW = "precision-at-5-next-new"
    PRECISION_AT_5_NEXT_OLD = "precision-at-5-next-old"
    PRECISION_AT_5_NEXT_ALL = "precision-at-5-next-all"
    PRECISION_AT_5_TIME_RANGE_NEW = "precision-at-5-time-range-new"
    PRECISION_AT_5_TIME_RANGE_OLD = "precision-at-5-time-range-old"
    PRECISION_AT_5_TIME_RANGE_ALL = "precision-at-5-time-range-all"
    PRECISION_AT_5_ANY_NEW = "precision-at-5-any-new"
    PRECISION_AT_5_ANY_OLD = "precision-at-5-any-old"
    PRECISION_AT_5_ANY_ALL = "precision-at-5-any-all"
    RECALL_AT_1_TIME_RANGE_NEW = "recall-at-1-time-range-new"
    RECALL_AT_1_TIME_RANGE_OLD = "recall-at-1-time-range-old"
    RECALL_AT_1_TIME_RANGE_ALL = "recall-at-1-time-range-all"
    RECALL_AT_1_ANY_NEW = "recall-at-1-any-new"
    RECALL_AT_1_ANY_OLD = "recall-at-1-any-old"
    RECALL_AT_1_ANY_ALL = "recall-at-1-any-all"
    RECALL_AT_3_TIME_RANGE_NEW = "recall-at-3-time-range-new"
    RECALL_AT_3_TIME_RANGE_OLD = "recall-at-3-time-range-old"
    RECALL_AT_3_TIME_RANGE_ALL = "recall-at-3-time-range-all"
    RECALL_AT_3_ANY_NEW = "recall-at-3-any-new"
    RECALL_AT_3_ANY_OLD = "recall-at-3-any-old"
    RECALL_AT_3_ANY_ALL = "recall-at-3-any-all"
    RECALL_AT_5_TIME_RANGE_NEW = "recall-at-5-time-range-new"
    RECALL_AT_5_TIME_RANGE_OLD = "recall-at-5-time-range-old"
    RECALL_AT_5_TIME_RANGE_ALL = "recall-at-5-time-range-all"
    RECALL_AT_5_ANY_NEW = "recall-at-5-any-new"
    RECALL_AT_5_ANY_OLD = "recall-at-5-any-old"
    RECALL_AT_5_ANY_ALL = "recall-at-5-any-all"
    ACCURACY = "accuracy"
    RETRIEVAL_P1 = "retrieval-p1"
    RETRIEVAL_P3 = "retrieval-p3"
    RETRIEVAL_P5 = "retrieval-p5"
    SITES_COMPARED = "sites-compared"
    SITES_MADE_WORSE = "sites-made-worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTotals:
    """Sums over the held-out records of all counted sites.

    Attributes:
        loss_sum: nats.
        n_units: what the loss is summed over, such as completion tokens.
        n_records: held-out records.
        counts: by name, those of the run's metrics.
    """

    loss_sum: float
    n_units: int
    n_records: int
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """One metric.

    Attributes:
        counts: names of the counts that it needs beside loss, units and records; each is one ring64 segment
            ``eval_<name>``, at most ``MOST_A_UNIT`` of its name a unit of the loss, or 1 where ``SITE_FLAGS`` has it.
        value: the metric, or None where nothing was counted.
        tasks: the only tasks that count for it; None: any.
        beside: metrics without which its value says nothing: they are shown with it. Their counts are among its own.
    """

    counts: tuple[str, ...]
    value: Callable[[EvaluationTotals], float | None]
    tasks: frozenset[TaskKind] | None = None
    beside: tuple[Metric, ...] = ()


def ratio(counted: float, among: int) -> float | None:
    """``counted / among``; None where there was nothing to count among."""
    return None if among == 0 else counted / among


MARGIN_STEPS = 1000
"""A margin is counted in thousandths of a nat, what is above zero and what is below apart: a count is not negative."""

_ON_TOKENS = frozenset({TaskKind.INSTRUCTION_TUNING, TaskKind.LANGUAGE_MODELLING})
_ON_PAIRS = frozenset({TaskKind.PREFERENCE_ALIGNMENT})
_ON_TIMELINES = frozenset({TaskKind.CONCEPT_TIMELINE})
_ON_IMAGES = frozenset({TaskKind.IMAGE_TEXT_ADAPTER, TaskKind.IMAGE_TEXT_CONTRASTIVE})
_WITH_A_LOSS = frozenset(TaskKind) - {TaskKind.CONCEPT_VOCABULARY}

MOST_A_UNIT: Mapping[str, int] = {"margin_above": 64 * MARGIN_STEPS, "margin_below": 64 * MARGIN_STEPS}
"""How much of a count a unit of the loss may give, where it is not 1; a token's share of a margin is below 64 nats."""


SITE_FLAGS: Mapping[str, str] = {
    "compared": "whether it has held-out records",
    "made_worse": "whether the adapter does worse on them than the initial one",
}
"""Counts that are 0 or 1 at a site, in words. A site's agent makes them of its losses; no trainer writes them."""

WORSE_BY = 2.0**-10
"""Nats a unit: an adapter does worse at a site where the mean loss of the held-out records grew by more than this.

A power of two, so that the comparison is exact; as much, and a tie, is not worse. Less than a thousandth nobody would
call worse, and another kernel may do as much.
"""


def perplexity(totals: EvaluationTotals) -> float | None:
    """The exponential of the mean loss; None where there is none, or one of above 709 nats, which no float holds."""
    mean = ratio(totals.loss_sum, totals.n_units)
    return None if mean is None or mean > math.log(sys.float_info.max) else math.exp(mean)


def mean_margin(totals: EvaluationTotals) -> float | None:
    """Nats a pair: beta times how much likelier the chosen completion became than the rejected one."""
    total = totals.counts["margin_above"] - totals.counts["margin_below"]
    return ratio(total / MARGIN_STEPS, totals.n_units)


def quotient_of_counts(counted: str, among: str, *, tasks: frozenset[TaskKind]) -> MetricRule:
    """A metric that is one count by another."""

    def value(totals: EvaluationTotals) -> float | None:
        return ratio(totals.counts[counted], totals.counts[among])

    return MetricRule(counts=(among, counted), value=value, tasks=tasks)


RANKING_KS = (1, 3, 5)
RANKING_SCOPES = ("next", "time-range", "any")
RANKING_NOVELTIES = ("new", "old", "all")


def ranking_count(scope: str, novelty: str, what: str) -> str:
    """The name of a count of rankings, such as ``time_range_new_hits_3``."""
    return f"{scope}_{novelty}_{what}".replace("-", "_")


def _ranking_rules() -> dict[Metric, MetricRule]:
    """Precision and recall at k of what comes on a timeline, as ``site_agent/training/timelines/ranking.py`` counts it.

    Where only the next code counts, precision and recall are the same and have one name.
    """
    rules: dict[Metric, MetricRule] = {}
    for scope, novelty, k in itertools.product(RANKING_SCOPES, RANKING_NOVELTIES, RANKING_KS):
        rules[Metric(f"precision-at-{k}-{scope}-{novelty}")] = quotient_of_counts(
            ranking_count(scope, novelty, f"hits_{k}"),
            ranking_count(scope, novelty, "positions"),
            tasks=_ON_TIMELINES,
        )
        if scope != "next":
            rules[Metric(f"recall-at-{k}-{scope}-{novelty}")] = quotient_of_counts(
                ranking_count(scope, novelty, f"found_{k}"),
                ranking_count(scope, novelty, "events"),
                tasks=_ON_TIMELINES,
            )
    return rules


def _sites(totals: EvaluationTotals, flag: str) -> float | None:
    """How many sites say so; None where none was compared."""
    return float(totals.counts[flag]) if totals.counts["compared"] else None


def _retrieval_at(k: int) -> MetricRule:
    """Precision at k: of the k nearest candidates of each query, how many are relevant. A count a rank, each 0 or 1."""
    ranks = tuple(f"relevant_at_{rank}" for rank in range(1, k + 1))

    def value(totals: EvaluationTotals) -> float | None:
        return ratio(sum(totals.counts[rank] for rank in ranks), k * totals.counts["queried"])

    return MetricRule(counts=("queried", *ranks), value=value, tasks=_ON_IMAGES)


METRICS: Mapping[Metric, MetricRule] = {
    Metric.LOSS: MetricRule(counts=(), value=lambda totals: ratio(totals.loss_sum, totals.n_units)),
    Metric.PERPLEXITY: MetricRule(counts=(), value=perplexity, tasks=_ON_TOKENS),
    Metric.PREFERENCE_ACCURACY: MetricRule(
        counts=("preferred",), value=lambda totals: ratio(totals.counts["preferred"], totals.n_units), tasks=_ON_PAIRS
    ),
    Metric.PREFERENCE_MARGIN: MetricRule(counts=("margin_above", "margin_below"), value=mean_margin, tasks=_ON_PAIRS),
    **_ranking_rules(),
    Metric.ACCURACY: quotient_of_counts("correct", "classified", tasks=_ON_IMAGES),
    Metric.RETRIEVAL_P1: _retrieval_at(1),
    Metric.RETRIEVAL_P3: _retrieval_at(3),
    Metric.RETRIEVAL_P5: _retrieval_at(5),
    Metric.SITES_COMPARED: MetricRule(
        counts=("compared",), value=lambda totals: _sites(totals, "compared"), tasks=_WITH_A_LOSS
    ),
    Metric.SITES_MADE_WORSE: MetricRule(
        counts=("compared", "made_worse"),
        value=lambda totals: _sites(totals, "made_worse"),
        tasks=_WITH_A_LOSS,
        beside=(Metric.SITES_COMPARED,),
    ),
}
"""Every metric of this version."""


def counts_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The names of the counts that these metrics need, each once, sorted."""
    return tuple(sorted({name for metric in metrics for name in METRICS[metric].counts}))


def counted_by_trainer(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Those of ``counts_of`` that a trainer counts, sorted."""
    return tuple(name for name in counts_of(metrics) if name not in SITE_FLAGS)


def are_sites_compared(metrics: Iterable[Metric]) -> bool:
    """Whether a metric asks how each site's loss compares with that of the initial adapter."""
    return any(name in SITE_FLAGS for name in counts_of(metrics))


def values_of(metrics: Iterable[Metric], totals: EvaluationTotals) -> dict[str, float]:
    """The metrics by name, and those that are shown beside them; one that has no value is left out."""
    shown = (each for metric in metrics for each in (metric, *METRICS[metric].beside))
    found = {metric.value: METRICS[metric].value(totals) for metric in shown}
    return {name: value for name, value in found.items() if value is not None}
