"""The demonstration of studies that learn something else than instructions: the same way, judged otherwise."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from tests.e2e.support.tiny_study import MODEL_NAME, write_tiny_study
from tests.support.tiny_model import make_tiny_model
from wardround.demo.federation import DemoSurroundings, run_demo
from wardround.demo.live_table import PlainProgress
from wardround.demo.workspace import Checkout, DemoOptions, Programs
from wardround.evidence.release_folder import verify_release_folder

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

RECORDS = {
    "text-jsonl": '{{"id": f"T{{number}}:{{index}}", "text": f"A sign {{number}}-{{index}} of the eye."}}',
    "preferences-jsonl": (
        '{{"id": f"T{{number}}:{{index}}", "prompt": f"Define {{name}}.", "chosen": f"It is {{name}}.",'
        ' "rejected": "It is nothing."}}'
    ),
}

PREPARE = """\
import argparse, json, pathlib

parser = argparse.ArgumentParser()
parser.add_argument("--sites", type=int)
parser.add_argument("--out", type=pathlib.Path)
arguments = parser.parse_args()
for number in range(1, arguments.sites + 1):
    with (arguments.out / f"site-{{number}}.jsonl").open("w") as file:
        for index in range(80 + number):
            name = f"sign {{number}}-{{index}}"
            file.write(json.dumps({record}) + "\\n")
"""


@pytest.mark.parametrize(
    ("task", "data_format", "metric", "better"),
    [
        ("{kind: language-modelling}", "text-jsonl", "perplexity", "lower"),
        ("{kind: preference-alignment, template: chat, beta: 0.1}", "preferences-jsonl", "preference-margin", "higher"),
    ],
)
def test_study_of_another_task_runs_to_a_verified_release_and_tells_its_own_figure(
    tmp_path: Path, task: str, data_format: str, metric: str, better: str
) -> None:
    study = tmp_path / "study"
    write_tiny_study(study)
    run = (study / "run.yaml").read_text().replace("rounds: 3", "rounds: 1").replace("steps: 6", "steps: 4")
    run = run.replace("{kind: instruction-tuning, template: chat}", task)
    run = run.replace("holdout_fraction: 0.1", f"holdout_fraction: 0.2, metrics: [loss, {metric}]")
    (study / "run.yaml").write_text(run)
    description = (study / "study.yaml").read_text().replace("spot}", f"spot, format: {data_format}}}")
    judged = f"metric: {{name: {metric}, unit: a unit, better: {better}}}"
    description = description.replace("metric: {name: loss, unit: nats a token, better: lower}", judged)
    (study / "study.yaml").write_text(description)
    (study / "prepare.py").write_text(PREPARE.format(record=RECORDS[data_format].format()))
    make_tiny_model(tmp_path / "models" / MODEL_NAME)

    surroundings = DemoSurroundings(
        checkout=Checkout.of_this_package(),
        programs=Programs(),
        environment=dict(os.environ),
        progress=PlainProgress(Console(stderr=True)),
        now=datetime.now(UTC),
    )
    options = DemoOptions(study=str(study), work_dir=tmp_path / "work", models_dir=tmp_path / "models")
    report = run_demo(options, surroundings)

    assert [(line.kind, line.state) for line in report.rounds] == [("train", "COMMITTED"), ("evaluate", "COMMITTED")]
    verify_release_folder(tmp_path / "work" / "release")
    assert report.generation is None, "nothing is asked of a model that answers no questions"
    document = report.to_document()["metric"]
    assert isinstance(document, dict)
    assert (document["name"], document["better"]) == (metric, better)
    assert report.change.is_better is True
    assert report.change.sentence().endswith(f"{better} is better")
