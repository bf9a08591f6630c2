"""The study trial-timelines without its protocol: federated, pooled and local-only beside two baselines.

    python -m benchmarks timelines --out docs/studies/trial-timelines-arms.json [--seeds N] [--search] [--baselines]

Every arm takes equal optimiser steps, from the same initial weights of a seed, and is evaluated on one pooled held-out
set: the patients of all sites whose hash the run's split holds out. The federated arm clips and weights as the protocol
does; its vocabulary is made by the halves of the vocabulary run. The file is filled a cell at a time: a command that
was cut off goes on where it was, and one whose table is full only prints it.

The search of learning rate and rounds (--search) never looks at held-out patients: a part of each site's training
patients, by the same hash, is kept aside for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.rows import announce
from benchmarks.timeline_arms import (
    ARMS,
    Bench,
    baseline_figures,
    prepare_bench,
)
from fl_protocol.spec.run_spec import RunSpec

SEARCHED_RATES = (1e-3, 3e-3, 6e-3)
RATES_AT_ROUNDS = 15
SEARCHED_ROUNDS = (8, 15, 25)
FIRST_SEED = 7
VOCABULARIES = {"released": ARMS, "all codes": ("federated", "pooled")}
"""What is measured with each: local-only training, the dearest arm, with the vocabulary of the study alone."""


@dataclass(slots=True)
class Table:
    """Cells by name, in a file that is whole after each."""

    path: Path | None
    cells: dict[str, dict[str, object]]

    def fill(self, name: str, measure: Callable[[], Mapping[str, object]]) -> dict[str, object]:
        """The cell; measured where it is not there yet."""
        if name not in self.cells:
            started = time.perf_counter()
            self.cells[name] = {**measure(), "seconds": round(time.perf_counter() - started, 1)}
            announce(f"{name}: {self.cells[name]}")
            self._write()
        return self.cells[name]

    def _write(self) -> None:
        if self.path is None:
            return
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        beside.write_text(json.dumps(self.cells, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(self.path)


def search(table: Table, bench: Bench) -> None:
    """The learning rate of each arm, then the rounds, on the validation patients, from one seed.

    The rate is each arm's own, so that none is held to what suits another; the rounds are the federated arm's, for all
    arms take equal steps.
    """
    for rate in SEARCHED_RATES:
        for arm in ARMS:
            name = f"search/{arm}/rate {rate:g}/rounds {RATES_AT_ROUNDS}"
            table.fill(name, partial(bench.search_cell, arm, FIRST_SEED, rate, RATES_AT_ROUNDS))
    best = max(SEARCHED_RATES, key=lambda rate: _searched(table, "federated", rate, RATES_AT_ROUNDS))
    for rounds in SEARCHED_ROUNDS:
        name = f"search/federated/rate {best:g}/rounds {rounds}"
        table.fill(name, partial(bench.search_cell, "federated", FIRST_SEED, best, rounds))


def _searched(table: Table, arm: str, rate: float, rounds: int) -> float:
    """What the search maximises: the mean of P@1, P@3 and P@5."""
    cell = table.cells[f"search/{arm}/rate {rate:g}/rounds {rounds}"]
    return statistics.fmean(float(str(cell[f"p{k}"])) for k in (1, 3, 5))


def best_rate(table: Table, arm: str, otherwise: float) -> float:
    """The searched rate of an arm; the run's where nothing was searched."""
    known = [rate for rate in SEARCHED_RATES if f"search/{arm}/rate {rate:g}/rounds {RATES_AT_ROUNDS}" in table.cells]
    return max(known, key=lambda rate: _searched(table, arm, rate, RATES_AT_ROUNDS)) if known else otherwise


def measure(table: Table, bench: Bench, vocabulary: str, seeds: Sequence[int]) -> None:
    """Every cell of one vocabulary."""
    for name, figures in baseline_figures(bench).items():
        table.fill(f"{vocabulary}/{name}", figures.to_document)
    for seed in seeds:
        for arm in VOCABULARIES[vocabulary]:
            spec = bench.spec
            rate = best_rate(table, arm, spec.local.learning_rate)
            changed = replace(spec, local=replace(spec.local, seed=seed, learning_rate=rate))
            table.fill(f"{vocabulary}/{arm}/seed {seed}", partial(_cell, bench, arm, changed))


def _cell(bench: Bench, arm: str, spec: RunSpec) -> dict[str, object]:
    return {**bench.run(arm, spec).to_document(), "rate": spec.local.learning_rate}


def rows_of(cells: Mapping[str, Mapping[str, object]], vocabulary: str) -> list[str]:
    """The table of one vocabulary as Markdown: mean and standard deviation over the seeds."""
    columns = ("p1", "p3", "p5", "loss", "worst_p5")
    lines = [f"| {vocabulary} | P@1 | P@3 | P@5 | loss | worst site's P@5 |", "|---|---|---|---|---|---|"]
    for arm in ("popularity", "co-occurrence", *ARMS):
        found = [cell for name, cell in sorted(cells.items()) if name.startswith(f"{vocabulary}/{arm}")]
        if found:
            lines.append("| " + " | ".join([arm, *(_spread(found, column) for column in columns)]) + " |")
    return lines


def site_rows_of(cells: Mapping[str, Mapping[str, object]], vocabulary: str) -> list[str]:
    """Each lone site's model as Markdown, on the held-out patients of all sites; nothing where none was trained."""
    columns = ("p1", "p3", "p5", "loss")
    by_site: dict[str, list[Mapping[str, object]]] = {}
    for name, cell in sorted(cells.items()):
        sites = cell.get("sites")
        if name.startswith(f"{vocabulary}/local-only") and isinstance(sites, Mapping):
            for site, figures in sites.items():
                by_site.setdefault(str(site), []).append(figures)
    if not by_site:
        return []
    lines = [f"| {vocabulary}, local-only | P@1 | P@3 | P@5 | loss |", "|---|---|---|---|---|"]
    return lines + [
        "| " + " | ".join([site, *(_spread(found, column) for column in columns)]) + " |"
        for site, found in sorted(by_site.items())
    ]


def _spread(cells: Sequence[Mapping[str, object]], column: str) -> str:
    values = [float(str(cell[column])) for cell in cells if cell.get(column) is not None]
    if not values:
        return "—"
    mean = statistics.fmean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ± {statistics.stdev(values):.3f}"


def main(arguments: list[str]) -> int:
    """Measure and print; 0 done, 1 the data cannot be prepared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks timelines", description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="the file that holds the cells")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", action="store_true", help="search learning rate and rounds first")
    parser.add_argument("--baselines", action="store_true", help="the baselines alone, which take seconds")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    has_cells = parsed.out is not None and parsed.out.is_file()
    table = Table(parsed.out, json.loads(parsed.out.read_text(encoding="utf-8")) if has_cells else {})
    seeds = range(FIRST_SEED, FIRST_SEED + (0 if parsed.baselines else parsed.seeds))
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in VOCABULARIES:
            bench = prepare_bench(Path(folder), is_released=vocabulary == "released")
            announce(f"{vocabulary}: {bench.describe()}")
            if parsed.search and vocabulary == "released":
                search(table, bench)
            measure(table, bench, vocabulary, seeds)
    if parsed.json:
        sys.stdout.write(json.dumps(table.cells, sort_keys=True) + "\n")
        return 0
    for vocabulary in VOCABULARIES:
        for lines in (rows_of(table.cells, vocabulary), site_rows_of(table.cells, vocabulary)):
            sys.stdout.write("\n".join([*lines, ""]) + "\n" if lines else "")
    return 0
