r"""Measure a study on images, with a domain that no site has: zero-shot, federated, pooled, and each site alone.

    python examples/blood-cells/measure.py --study examples/blood-cells --model .wardround/models/mini-clip \\
        --prepared DIR --sites 3 --unseen unseen.csv --seeds 3 [--steps N] [--learning-rate X] [--json]

Trains with the trainer's own code and folds with the run's own algorithm; only the protocol around it is left out. All
arms take the same number of optimiser steps in a row, and are judged by the same held-out records: those of all sites
together, and those of the unseen domain, whose records are all held out. ``python -m benchmarks studies`` fills the
study's table; it knows no unseen domain, which is why this program is here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.metrics import EvaluationTotals, counts_of, values_of
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.spec.seeds import training_seed
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import initial_adapter, load_adapter, read_adapter
from site_agent.training.data import Record, split_dataset
from site_agent.training.device import choose_compute
from site_agent.training.exchange.fedavg_lora import NOT_EVALUATED, training_segments
from site_agent.training.formats import format_called
from site_agent.training.model_files import digest_model_folder
from site_agent.training.progress import ProgressReporter
from site_agent.training.recipe import evaluate, plain_rule, train
from site_agent.training.shelf import ModelShelf
from site_agent.training.task_half import LoadedTask, PreparesRecords
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples

UNSEEN = "unseen"
HELD_OUT = "held-out"


class Silence(ProgressReporter):
    """Nobody listens."""

    def __init__(self) -> None:
        """Needs no folder."""
        super().__init__(Path())

    def report(self, *_: Any, **__: Any) -> None:
        """Say nothing."""

    def beat(self) -> None:
        """Say nothing."""


def trained_round(
    task: LoadedTask, spec: RunSpec, state: PublicState, records: Sequence[Record], *, site: str, round_index: int
) -> Mapping[str, Any]:
    """One round at one site, as its trainer does it: the raw segments."""
    load_adapter(task.module, state.adapter, layout=task.layout)
    seed = training_seed(run_seed=spec.local.seed, site_id=SiteId(site), round_index=round_index, round_attempt=0)
    rule = plain_rule(spec, round_index)
    examples = sample_examples(records, task, n_examples=rule.n_examples, seed=seed, counts=FitCounts())
    trained = train(task, examples, rule=rule, seed=seed, progress=Silence())
    return training_segments(
        task.layout,
        local_adapter=read_adapter(task.module),
        global_adapter=state.adapter,
        trained=trained,
        evaluated=NOT_EVALUATED,
        counts=counts_of(spec.evaluation.metrics),
    )


def federated(task: LoadedTask, spec: RunSpec, sites: Mapping[str, Sequence[Record]]) -> tuple[PublicState, float]:
    """The adapter of all rounds, and the largest norm of an update."""
    algorithm = ALGORITHMS[spec.aggregation.algorithm.value]
    state, largest = initial_adapter(task.layout, spec.local.seed), 0.0
    for round_index in range(spec.rounds):
        sums: dict[str, Any] = {}
        for site, records in sites.items():
            raw = trained_round(task, spec, state, records, site=site, round_index=round_index)
            largest = max(largest, float(torch.from_numpy(raw["adapter_update"]).norm()))
            weighed = algorithm.weigh(dict(raw), n_records=len(records), spec=spec, kind=RoundKind.TRAIN)
            for name, value in weighed.items():
                wide = value.astype("float64" if value.dtype.kind == "f" else "int64")
                sums[name] = wide if name not in sums else sums[name] + wide
        folded = algorithm.fold(sums, state, spec=spec, layout=task.layout, kind=RoundKind.TRAIN, n_sites=len(sites))
        state = folded.state
    return state, largest


def alone(task: LoadedTask, spec: RunSpec, records: Sequence[Record], *, site: str) -> PublicState:
    """As many steps in a row on one set of records."""
    state = initial_adapter(task.layout, spec.local.seed)
    for round_index in range(spec.rounds):
        raw = trained_round(task, spec, state, records, site=site, round_index=round_index)
        moved = task.layout.flatten(state.adapter) + raw["adapter_update"]
        state = PublicState(version=state.version + 1, adapter=task.layout.unflatten(moved))
    return state


def judged(
    task: LoadedTask, spec: RunSpec, state: PublicState, judges: Mapping[str, Sequence[Record]]
) -> dict[str, dict[str, float]]:
    """The run's metrics of an adapter on each set of held-out records."""
    load_adapter(task.module, state.adapter, layout=task.layout)
    found: dict[str, dict[str, float]] = {}
    for name, records in judges.items():
        sums = evaluate(task, list(encode_records(records, task, FitCounts())), progress=Silence())
        totals = EvaluationTotals(
            loss_sum=sums.loss_sum, n_units=sums.n_tokens, n_records=sums.n_records, counts=dict(sums.counts)
        )
        found[name] = values_of(spec.evaluation.metrics, totals)
    return found


def open_run(study: Path, model: Path, arguments: argparse.Namespace) -> RunSpec:
    """The study's specification with what depends on the machine, and what the command line changes."""
    document = yaml.safe_load((study / "run.yaml").read_text(encoding="utf-8"))
    document["base_model"]["sha256"] = digest_model_folder(model)
    document["cohort"] |= {"sites": [f"site-{k}" for k in range(1, arguments.sites + 1)], "quorum": arguments.sites}
    for key, value in (("steps", arguments.steps), ("learning_rate", arguments.learning_rate)):
        if value is not None:
            document["local"][key] = value
    return parse_run_spec(document)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Every arm over all seeds."""
    compute = choose_compute(DeviceChoice.CPU)
    spec = open_run(arguments.study, arguments.model, arguments)
    task = ModelShelf().take(arguments.model, spec, sha256=spec.base_model.sha256, compute=compute)
    read = format_called("image-manifest").read
    training: dict[str, Sequence[Record]] = {}
    judges: dict[str, list[Record]] = {HELD_OUT: []}
    for number in range(1, arguments.sites + 1):
        dataset = read(arguments.prepared / f"site-{number}.csv", patient_field="patient_id")
        split = split_dataset(
            dataset, holdout_fraction=spec.evaluation.holdout_fraction, max_records=spec.evaluation.max_records
        )
        training[f"site-{number}"] = split.training
        judges[HELD_OUT].extend(split.held_out)
    if arguments.unseen is not None:
        unseen = read(arguments.prepared / arguments.unseen, patient_field="patient_id")
        judges[UNSEEN] = list(unseen.records)
    if isinstance(task, PreparesRecords):
        # Features are kept beside the prepared images, as an agent keeps them beside its jobs.
        task.prepare([one for records in training.values() for one in records], private_folder=arguments.prepared)
    cells: list[dict[str, object]] = []
    for seed in range(spec.local.seed, spec.local.seed + arguments.seeds):
        seeded = replace(spec, local=replace(spec.local, seed=seed))
        state, largest = federated(task, seeded, training)
        arms = {"zero-shot": initial_adapter(task.layout, seed), "federated": state}
        arms["pooled"] = alone(task, seeded, [one for records in training.values() for one in records], site="pooled")
        arms |= {f"local {site}": alone(task, seeded, records, site=site) for site, records in training.items()}
        for arm, reached in arms.items():
            cells.append({"arm": arm, "seed": seed, **judged(task, seeded, reached, judges)})
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
        cells.append({"arm": "largest update norm", "seed": seed, "norm": round(largest, 3)})
    return {
        "study": spec.name,
        "optimiser_steps": spec.rounds * spec.local.steps,
        "learning_rate": spec.local.learning_rate,
        "precision": compute.precision,
        "held_out_records": {name: len(records) for name, records in judges.items()},
        "cells": cells,
    }


def table(measured: Mapping[str, Any]) -> str:
    """The mean and the spread (standard deviation over seeds) of each arm's accuracy and loss."""
    lines = ["| arm | judged by | accuracy | loss |", "|---|---|---|---|"]
    cells = [cell for cell in measured["cells"] if "norm" not in cell]
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        for judge in measured["held_out_records"]:
            shown = []
            for metric in ("accuracy", "loss"):
                values = [cell[judge][metric] for cell in cells if cell["arm"] == arm and metric in cell[judge]]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                shown.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "-")
            lines.append(f"| {arm} | {judge} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> int:
    """Read the command line; 0 done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="a folder with run.yaml")
    parser.add_argument("--model", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="what the study's prepare.py wrote")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--unseen", help="a manifest in the prepared folder whose records no site has")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    measured = measure(arguments)
    print(json.dumps(measured) if arguments.json else table(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
