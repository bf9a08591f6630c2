"""The demo's study, measured now: federated beside local-only training at equal steps, and seconds a step.

    python -m benchmarks training [--study NAME] [--data DIR] [--seeds N] [--threads N] [--models-dir DIR] [--json]
    python -m benchmarks training --run-spec my-run.yaml --without-local

The same cells as ``python -m benchmarks studies`` fills, with the specification's own rate and steps and no search, in
a table that is thrown away. A lone site's adapter is judged twice: by all sites' held-out records, as every arm is, and
by its own. Three seeds take about ten minutes on two cores, so this is a command and not a test.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from benchmarks.rows import Row, machine_document, print_rows
from benchmarks.studies.cells import Cell, Phase
from benchmarks.studies.figures import ArmFigures, rows_of_table, value_of
from benchmarks.studies.progress import Pace, TableProgress
from benchmarks.studies.table_file import Table
from fl_protocol.errors import WardroundError
from wardround.demo.workspace import DEFAULT_STUDY, Checkout
from wardround.exit_codes import exit_code_of
from wardround.studies.catalogue import find_study, with_run_spec
from wardround.studies.description import Arm, Better, ShownMetric

AIM = 0.10
"""The figure is to improve by at least this part."""

ARMS = (Arm.BEFORE, Arm.FEDERATED, Arm.LOCAL)
LOCAL_MEAN = "local, mean of sites"


def main(arguments: list[str]) -> int:
    """Measure and print; 0 the aim is met, 1 it is not, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default=DEFAULT_STUDY)
    parser.add_argument("--data", type=Path, help="the folder that some studies need")
    parser.add_argument("--run-spec", type=Path, help="in place of the study's run.yaml")
    parser.add_argument("--without-local", action="store_true", help="leave out the arm that takes most of the time")
    parser.add_argument("--models-dir", type=Path, help="where converted base models are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    try:
        rows = measure(parsed)
    except WardroundError as error:
        sys.stderr.write(f"Error: {error}\n")
        return int(exit_code_of(error))
    print_rows(rows, as_json=parsed.json)
    return 0 if all(row.within is not False for row in rows) else 1


def measure(parsed: argparse.Namespace) -> list[Row]:
    """Fill a table and read the rows off it.

    Raises:
        WardroundError: the study cannot be had, or training failed.
    """
    from benchmarks.studies.arms import plain_sum
    from benchmarks.studies.filling import Filling, fill_table
    from benchmarks.studies.opening import OpeningOptions, study_at_hand

    study = find_study(parsed.study, Checkout.of_this_package().examples_dir)
    if parsed.run_spec is not None:
        study = with_run_spec(study, parsed.run_spec)
    shown = TableProgress()
    options = OpeningOptions(data=parsed.data, models_dir=parsed.models_dir, threads=parsed.threads)
    table = Table(study=study.name)
    with tempfile.TemporaryDirectory() as folder, study_at_hand(study, options=options, shown=shown) as opened:
        spec = opened.spec
        filling = Filling(
            path=Path(folder) / "table.json",
            run_spec=spec.to_document(),
            sites=opened.sites,
            common=opened.common,
            common_sha256=opened.common_sha256,
            metric=study.description.metric,
            grid=None,
            seeds=range(spec.local.seed, spec.local.seed + parsed.seeds),
            arms=tuple(arm for arm in ARMS if arm is not Arm.LOCAL or not parsed.without_local),
            add_up=plain_sum,
            is_secure=False,
            is_redoing=False,
            machine=machine_document(),
        )
        fill_table(filling, table, opened.workshop, shown)
    n_steps = spec.rounds * spec.local.steps
    return rows_of(table, study.description.metric, shown.pace, n_steps=n_steps, clip_norm=spec.privacy.clip_norm)


def rows_of(table: Table, metric: ShownMetric, pace: Pace, *, n_steps: int, clip_norm: float) -> list[Row]:
    """The figures of the arms beside each other, and what a step took."""
    cells = list(table.cells.values())
    by_name = {row.name: row for row in rows_of_table(cells, metric)}
    before, federated, local = by_name[Arm.BEFORE.value], by_name[Arm.FEDERATED.value], by_name.get(LOCAL_MEAN)
    gained = gain(before, federated, metric)
    norms = [norm for cell in cells if is_federated(cell) for norm in cell.update_norms]
    alone: list[Row] = []
    if local is not None:
        own = at_own_sites(cells, Arm.LOCAL, metric)
        of_federated = at_own_sites(cells, Arm.FEDERATED, metric)
        alone = [
            Row(name=f"held-out {metric.name}, local only, {n_steps} steps, mean of sites", value=local.pooled.mean,
                unit=metric.unit, yardstick=federated.pooled.mean, yardstick_name="federated"),
            Row(name=f"held-out {metric.name}, local only, each site's own records, mean of sites", value=own,
                unit=metric.unit, yardstick=of_federated, yardstick_name="federated"),
        ]  # fmt: skip
    return [
        Row(name=f"held-out {metric.name}, before", value=before.pooled.mean, unit=metric.unit),
        Row(name=f"held-out {metric.name}, federated, {n_steps} steps", value=federated.pooled.mean, unit=metric.unit,
            yardstick=before.pooled.mean, yardstick_name="before"),
        *alone,
        Row(name="gain of the federated arm, mean of seeds", value=gained, unit="part", yardstick=AIM,
            yardstick_name="aim", ratio=gained / AIM, within=gained >= AIM),
        Row(name="seconds a step", value=pace.step_s / pace.done.steps, unit="s"),
        Row(name="seconds a held-out record", value=pace.record_s / pace.done.records, unit="s"),
        Row(name="L2 norm of a site's update, median", value=statistics.median(norms), unit="",
            yardstick=clip_norm, yardstick_name="clip_norm"),
        Row(name="L2 norm of a site's update, largest", value=max(norms), unit="", yardstick=clip_norm,
            yardstick_name="clip_norm", ratio=clip_norm / max(norms), within=max(norms) <= clip_norm),
    ]  # fmt: skip


def at_own_sites(cells: Iterable[Cell], arm: Arm, metric: ShownMetric) -> float:
    """The mean of what each site's held-out records say of the adapter it would use: its own, or the shared one."""
    values = [
        value_of(metric.name, sums)
        for cell in cells
        if cell.key.phase is Phase.TABLE and cell.key.arm is arm
        for site, sums in cell.sites.items()
        if site == cell.key.site or arm is not Arm.LOCAL
    ]
    return fmean(value for value in values if not math.isnan(value))


def gain(before: ArmFigures, after: ArmFigures, metric: ShownMetric) -> float:
    """By which part of the first figure the second is better."""
    change = (after.pooled.mean - before.pooled.mean) / before.pooled.mean
    return -change if metric.better is Better.LOWER else change


def is_federated(cell: Cell) -> bool:
    """Whether it is a cell of the federated arm."""
    return cell.key.phase is Phase.TABLE and cell.key.arm is Arm.FEDERATED
