"""Which cells a table has, and which setting the search's cells choose. Pure.

Every pair of learning rate and steps is tried by every arm that trains. One number of steps is chosen for all arms, so
that their budgets stay equal: the one at which the arms' best figures are best on average. At that number each arm
takes its own best rate. An arm of several adapters (``local``, ``without``) is judged by their mean. Ties go to fewer
steps and the lower rate. All arms are judged by the same validation records, those of all sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.studies.cells import Cell, CellKey, Phase
from wardround.studies.description import Arm, Better, SearchGrid

ALL_SITES = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the table's cells train with: one number of steps, a learning rate an arm."""

    steps: int
    learning_rates: Mapping[Arm, float]

    def to_document(self, *, rounds: int) -> dict[str, object]:
        """As it stands in the table's document."""
        rates = {arm.value: rate for arm, rate in sorted(self.learning_rates.items())}
        return {"rounds": rounds, "steps": self.steps, "learning_rates": rates}


def sites_of_arm(arm: Arm, sites: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """By whose records alone, or by all but whose, an arm has cells."""
    match arm:
        case Arm.LOCAL:
            return tuple(sites)
        case Arm.WITHOUT:
            return tuple(without)
        case _:
            return (ALL_SITES,)


def search_cells(
    grid: SearchGrid, *, arms: Iterable[Arm], sites: Sequence[str], seed: int, without: Sequence[str] = ()
) -> tuple[CellKey, ...]:
    """Every cell of the search, the cheapest first."""
    return tuple(
        CellKey(phase=Phase.SEARCH, arm=arm, site=site, seed=seed, learning_rate=rate, steps=steps)
        for steps in sorted(grid.steps)
        for arm in arms
        if arm is not Arm.BEFORE
        for rate in sorted(grid.learning_rates)
        for site in sites_of_arm(arm, sites, without)
    )


def table_cells(
    setting: Setting, *, arms: Iterable[Arm], sites: Sequence[str], seeds: Sequence[int], without: Sequence[str] = ()
) -> tuple[CellKey, ...]:
    """Every cell of the table, a seed at a time, so that what is unfinished has whole seeds."""
    chosen = tuple(arms)
    return tuple(
        CellKey(
            phase=Phase.TABLE,
            arm=arm,
            site=site,
            seed=seed,
            learning_rate=0.0 if arm is Arm.BEFORE else setting.learning_rates[arm],
            steps=0 if arm is Arm.BEFORE else setting.steps,
        )
        for seed in seeds
        for arm in chosen
        for site in sites_of_arm(arm, sites, without)
    )


def choose_setting(
    cells: Iterable[Cell], *, value_of: Callable[[Cell], float], better: Better, grid: SearchGrid, arms: Iterable[Arm]
) -> Setting:
    """The setting that the search's cells choose.

    Args:
        cells: of the search, complete for these arms.
        value_of: the validation figure of a cell.
        better: which way that is to go.
        grid: what was tried.
        arms: those that train.
    """
    values = _mean_values(cells, value_of)
    sign = 1.0 if better is Better.LOWER else -1.0
    trained = [arm for arm in arms if arm is not Arm.BEFORE]
    if not trained:
        return Setting(steps=min(grid.steps), learning_rates={})

    def best_rate(arm: Arm, steps: int) -> float:
        return min(sorted(grid.learning_rates), key=lambda rate: sign * values[arm, rate, steps])

    def mean_of_best(steps: int) -> float:
        return sign * fmean(values[arm, best_rate(arm, steps), steps] for arm in trained)

    steps = min(sorted(grid.steps), key=mean_of_best)
    return Setting(steps=steps, learning_rates={arm: best_rate(arm, steps) for arm in trained})


def _mean_values(cells: Iterable[Cell], value_of: Callable[[Cell], float]) -> dict[tuple[Arm, float, int], float]:
    gathered: dict[tuple[Arm, float, int], list[float]] = {}
    for cell in cells:
        key = cell.key
        if key.phase is Phase.SEARCH:
            gathered.setdefault((key.arm, key.learning_rate, key.steps), []).append(value_of(cell))
    return {setting: fmean(values) for setting, values in gathered.items()}
