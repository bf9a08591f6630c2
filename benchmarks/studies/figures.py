"""The figures of a table: each metric of a cell from its sums, then mean and spread over seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.studies.cells import Cell, Phase, add_sums
from benchmarks.studies.errors import MetricUnknownError
from fl_protocol.spec.metrics import METRICS, EvaluationTotals, Metric
from wardround.studies.description import Arm, ShownMetric

WORST_ALONE = "local, worst site"
"""How the name of the row begins that repeats the worst of those who were trained alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of one value."""

    mean: float
    deviation: float | None
    n: int

    def text(self, digits: int = 4) -> str:
        """``mean ± deviation``."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """One row of the table.

    Attributes:
        pooled: on the held-out records of all sites together.
        worst_site: on the held-out records of the site where it is worst.
        learning_rate, steps: the setting; 0 where nothing was trained.
    """

    name: str
    pooled: Spread
    worst_site: Spread
    learning_rate: float
    steps: int


def value_of(metric: str, sums: EvaluationTotals) -> float:
    """A metric from sums; NaN where nothing was evaluated.

    Raises:
        MetricUnknownError: this version has no such metric.
    """
    if metric not in set(Metric):
        message = f"there is no metric {metric!r}"
        raise MetricUnknownError(message, advice=f"study.yaml: metric.name is one of {', '.join(Metric)}.")
    value = METRICS[Metric(metric)].value(sums)
    return math.nan if value is None else value


def pooled_value(metric: str, cell: Cell) -> float:
    """A cell's metric over the held-out records of all sites."""
    return value_of(metric, add_sums(cell.sites))


def worst_value(metric: ShownMetric, cell: Cell) -> float:
    """A cell's metric at the site where it is worst; NaN where no site has one."""
    values = [value for sums in cell.sites.values() if not math.isnan(value := value_of(metric.name, sums))]
    worst = math.nan
    for value in values:
        worst = worst if metric.is_better(value, worst) else value
    return worst


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1 in the denominator)."""
    return Spread(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None, n=len(values))


def rows_of_table(cells: Iterable[Cell], metric: ShownMetric) -> list[ArmFigures]:
    """The rows: every arm, then local-only site by site and the worst of them, over the seeds that are whole."""
    by_arm: dict[Arm, dict[str, dict[int, Cell]]] = {}
    for cell in cells:
        if cell.key.phase is Phase.TABLE:
            by_arm.setdefault(cell.key.arm, {}).setdefault(cell.key.site, {})[cell.key.seed] = cell
    rows: list[ArmFigures] = []
    for arm in Arm:
        if arm not in by_arm:
            continue
        sites = by_arm[arm]
        seeds = sorted(set.intersection(*(set(of_site) for of_site in sites.values())))
        if arm is Arm.WITHOUT:
            rows += [_row(f"without {site}", list(of_site.values()), metric) for site, of_site in sites.items()]
        elif arm is not Arm.LOCAL:
            rows += [_row(arm.value, [of_site[seed] for seed in seeds], metric) for of_site in sites.values()]
        elif seeds:
            rows += _local_rows(sites, seeds, metric)
    return rows


def _local_rows(sites: Mapping[str, Mapping[int, Cell]], seeds: Sequence[int], metric: ShownMetric) -> list[ArmFigures]:
    of_seed = {seed: [of_site[seed] for of_site in sites.values()] for seed in seeds}
    first = of_seed[seeds[0]][0].key
    pooled = {seed: [pooled_value(metric.name, cell) for cell in cells] for seed, cells in of_seed.items()}
    at_worst = {seed: [worst_value(metric, cell) for cell in cells] for seed, cells in of_seed.items()}
    mean = ArmFigures(
        name="local, mean of sites",
        pooled=spread_of([fmean(values) for values in pooled.values()]),
        worst_site=spread_of([fmean(values) for values in at_worst.values()]),
        learning_rate=first.learning_rate,
        steps=first.steps,
    )
    alone = [_row(f"local, {site}", [of_site[seed] for seed in seeds], metric) for site, of_site in sites.items()]
    worst = alone[0]
    for row in alone[1:]:
        worst = worst if metric.is_better(row.pooled.mean, worst.pooled.mean) else row
    named = ArmFigures(
        name=f"{WORST_ALONE} ({worst.name.removeprefix('local, ')})",
        pooled=worst.pooled,
        worst_site=worst.worst_site,
        learning_rate=worst.learning_rate,
        steps=worst.steps,
    )
    return [mean, *alone, named]


def _row(name: str, cells: Sequence[Cell], metric: ShownMetric) -> ArmFigures:
    key = cells[0].key
    return ArmFigures(
        name=name,
        pooled=spread_of([pooled_value(metric.name, cell) for cell in cells]),
        worst_site=spread_of([worst_value(metric, cell) for cell in cells]),
        learning_rate=key.learning_rate,
        steps=key.steps,
    )
