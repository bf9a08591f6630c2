"""What an evaluation measures: for each metric the counts that a site adds to the sum, and the value that follows.

A metric is a function of sums over all counted sites: no site's own value is ever sent. A new metric is one member and
one row of the table; its task's ``evaluate`` fills the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Metric(StrEnum):
    """What an evaluation measures."""

    LOSS = "loss"


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
            ``eval_<name>``, at most one a unit of the loss.
        value: the metric, or None where nothing was counted.
    """

    counts: tuple[str, ...]
    value: Callable[[EvaluationTotals], float | None]


def ratio(counted: float, among: int) -> float | None:
    """``counted / among``; None where there was nothing to count among."""
    return None if among == 0 else counted / among


METRICS: Mapping[Metric, MetricRule] = {
    Metric.LOSS: MetricRule(counts=(), value=lambda totals: ratio(totals.loss_sum, totals.n_units)),
}
"""Every metric of this version."""


def counts_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The names of the counts that these metrics need, each once, sorted."""
    return tuple(sorted({name for metric in metrics for name in METRICS[metric].counts}))


def values_of(metrics: Iterable[Metric], totals: EvaluationTotals) -> dict[str, float]:
    """The metrics by name; one that has no value is left out."""
    found = {metric.value: METRICS[metric].value(totals) for metric in metrics}
    return {name: value for name, value in found.items() if value is not None}
