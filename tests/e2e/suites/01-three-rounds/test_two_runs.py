"""A study whose base model follows from a run of its own: both runs in one demonstration, the agents started twice."""

from __future__ import annotations

import json
import os
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

STUDY = """\
first_run: {run: first.yaml}
base_model:
  builder: second_base.py
  arguments: [--release, "{first_release}", --base, "{first_base}", --data, "{data}"]
"""

BUILDER = """\
import argparse, json, pathlib, shutil

parser = argparse.ArgumentParser()
for name in ("--release", "--base", "--data", "--out"):
    parser.add_argument(name, type=pathlib.Path, required=True)
parser.add_argument("--json", action="store_true")
arguments = parser.parse_args()
assert (arguments.data / "site-1.jsonl").is_file()
manifest = json.loads((arguments.release / "manifest.json").read_text())
shutil.copytree(arguments.base, arguments.out)
(arguments.out / "first.json").write_text(json.dumps({"run_id": manifest["run_id"]}))
print(json.dumps({"run_spec": {"local": {"batch_size": 2}}}))
"""


def surroundings() -> DemoSurroundings:
    from datetime import UTC, datetime

    return DemoSurroundings(
        checkout=Checkout.of_this_package(),
        programs=Programs(),
        environment=dict(os.environ),
        progress=PlainProgress(Console(stderr=True)),
        now=datetime.now(UTC),
    )


def test_study_with_a_first_run_builds_its_base_on_that_run_s_release(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_tiny_study(study)
    run = (study / "run.yaml").read_text().replace("rounds: 3", "rounds: 1").replace("steps: 6", "steps: 2")
    (study / "first.yaml").write_text(run.replace("Try the whole way", "Find what the base is made of"))
    second = "base_model: {name: second, sha256"
    (study / "run.yaml").write_text(run.replace(f"base_model: {{name: {MODEL_NAME}, sha256", second))
    (study / "study.yaml").write_text((study / "study.yaml").read_text() + STUDY)
    (study / "second_base.py").write_text(BUILDER)
    make_tiny_model(tmp_path / "models" / MODEL_NAME)

    options = DemoOptions(study=str(study), work_dir=tmp_path / "work", models_dir=tmp_path / "models")
    report = run_demo(options, surroundings())

    assert report.base_model == "second"
    assert [(line.kind, line.state) for line in report.rounds] == [("train", "COMMITTED"), ("evaluate", "COMMITTED")]
    first = verify_release_folder(tmp_path / "work" / "first-run" / "release")
    own = verify_release_folder(tmp_path / "work" / "release")
    assert first.manifest_sha256 != own.manifest_sha256
    said = json.loads((tmp_path / "work" / "base-models" / "second" / "first.json").read_text())
    assert said["run_id"].startswith("run-")
    assert said["run_id"] != report.run_id
    assert "batch_size: 2" in (tmp_path / "work" / "run.yaml").read_text(), "what the builder said is in the run"
    assert "batch_size: 4" in (tmp_path / "work" / "first-run" / "run.yaml").read_text()
    assert not (tmp_path / "models" / "second").exists(), "a base of this demonstration stays with it"
    assert set(report.audit_rows) == {"coordinator", "st-mary", "charite", "ucsf"}
