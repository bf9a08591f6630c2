r"""Measure a study with a domain that no site has: zero-shot, federated, pooled, and each site alone.

    python -m benchmarks.unseen_domain --study blood-cells --model .wardround/models/mini-clip \
        --prepared DIR --sites 3 --unseen unseen.csv --seeds 3 [--steps N] [--learning-rate X] [--json]

The arms are those of ``python -m benchmarks studies``, which fills a study's table and knows no unseen domain. All take
the same number of optimiser steps in a row, and are judged by the same held-out records: those of all sites together,
and those of the unseen domain, whose records are all held out. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.cells import add_sums
from benchmarks.studies.progress import TableProgress
from benchmarks.studies.splits import SiteParts
from fl_protocol.spec.metrics import values_of
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from wardround.documents import section_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
UNSEEN = "unseen"
HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An arm under a seed: by who judged it, the run's metrics."""

    arm: str
    seed: int
    metrics: Mapping[str, Mapping[str, float]]


def open_run(arguments: argparse.Namespace) -> RunSpec:
    """The study's specification with what depends on the machine, and what the command line changes."""
    from site_agent.training.model_files import digest_model_folder

    path = EXAMPLES / arguments.study / "run.yaml"
    document: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
    sha256 = digest_model_folder(arguments.model)
    sites = [f"site-{number}" for number in range(1, arguments.sites + 1)]
    changes = {"steps": arguments.steps, "learning_rate": arguments.learning_rate}
    document["base_model"] = {**section_of(document, "base_model"), "sha256": sha256}
    document["cohort"] = {**section_of(document, "cohort"), "sites": sites, "quorum": arguments.sites}
    chosen = {key: one for key, one in changes.items() if one is not None}
    document["local"] = {**section_of(document, "local"), **chosen}
    return parse_run_spec(document)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Every arm over all seeds."""
    import torch

    from benchmarks.studies.arms import train_alone, train_federated
    from benchmarks.studies.workshop import Workshop
    from site_agent.jobs.job_dir import DeviceChoice
    from site_agent.training.device import choose_compute
    from site_agent.training.formats import format_called
    from site_agent.training.shelf import ModelShelf
    from site_agent.training.task_half import PreparesRecords

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    compute = choose_compute(DeviceChoice.AUTO)
    spec = open_run(arguments)
    task = ModelShelf().take(arguments.model, spec, sha256=spec.base_model.sha256, compute=compute)
    read = format_called("image-manifest").read
    sites = [
        site_parts(f"site-{k}", read(arguments.prepared / f"site-{k}.csv", patient_field="patient_id"), spec)
        for k in range(1, arguments.sites + 1)
    ]
    judges: dict[str, Mapping[str, Sequence[Any]]] = {HELD_OUT: {one.name: one.held_out for one in sites}}
    if arguments.unseen is not None:
        unseen = read(arguments.prepared / arguments.unseen, patient_field="patient_id")
        judges[UNSEEN] = {UNSEEN: unseen.records}
    everything = [record for site in sites for record in site.training]
    if isinstance(task, PreparesRecords):
        # Features are kept beside the prepared images, as an agent keeps them beside its jobs.
        task.prepare(everything, private_folder=arguments.prepared)
    workshop, cells = Workshop(task, shown=TableProgress()), list[Measured]()
    norms: list[float] = []
    for seed in range(spec.local.seed, spec.local.seed + arguments.seeds):
        seeded = replace(spec, local=replace(spec.local, seed=seed))
        federated = train_federated(workshop, seeded, sites, records_of=lambda site: site.training)
        norms.append(max(federated.update_norms))
        arms = {"zero-shot": workshop.initial_state(seeded), "federated": federated.state}
        arms["pooled"] = train_alone(workshop, seeded, site="pooled", records=everything).state
        for site in sites:
            arms[f"local {site.name}"] = train_alone(workshop, seeded, site=site.name, records=site.training).state
        for arm, state in arms.items():
            found = {
                judge: values_of(
                    spec.evaluation.metrics,
                    add_sums({name: workshop.evaluate(seeded, state.adapter, of) for name, of in parts.items()}),
                )
                for judge, parts in judges.items()
            }
            cells.append(Measured(arm=arm, seed=seed, metrics=found))
    return {
        "study": spec.name,
        "optimiser_steps": spec.rounds * spec.local.steps,
        "learning_rate": spec.local.learning_rate,
        "precision": compute.precision,
        "held_out_records": {judge: sum(len(of) for of in parts.values()) for judge, parts in judges.items()},
        "largest_update_norms": [round(norm, 3) for norm in norms],
        "cells": [{"arm": cell.arm, "seed": cell.seed, **cell.metrics} for cell in cells],
    }


def site_parts(name: str, dataset: Any, spec: RunSpec) -> SiteParts[Any]:
    """A site's records by their use; nothing is searched, so nothing is split off for that."""
    from site_agent.training.data import split_dataset

    evaluation = spec.evaluation
    split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
    return SiteParts(
        name=name,
        n_records=len(dataset.records),
        training=tuple(split.training),
        held_out=tuple(split.held_out),
        fitting=tuple(split.training),
        validation=(),
    )


def table(measured: Mapping[str, Any]) -> str:
    """The mean and the standard deviation over seeds of each arm's metrics, as each judge has it."""
    cells, judges = measured["cells"], list(measured["held_out_records"])
    metrics = list(dict.fromkeys(name for cell in cells for judge in judges for name in cell[judge]))
    lines = [f"| arm | judged by | {' | '.join(metrics)} |", "|---|---|" + "---|" * len(metrics)]
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        for judge in judges:
            shown = []
            for metric in metrics:
                values = [cell[judge][metric] for cell in cells if cell["arm"] == arm and metric in cell[judge]]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                shown.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "-")
            lines.append(f"| {arm} | {judge} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> int:
    """Read the command line; 0 done."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unseen_domain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", required=True, help="a study in examples/ whose datasets are image manifests")
    parser.add_argument("--model", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="what the study's prepare.py wrote")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--unseen", help="a manifest in the prepared folder whose records no site has")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    measured = measure(arguments)
    print(json.dumps(measured) if arguments.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
