"""What a newcomer types to see which studies there are, and what a wrong name or a missing folder is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support.tiny_study import write_tiny_study

ROOT = Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.e2e


def demo(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``wardround demo``."""
    program = [sys.executable, "-m", "wardround", "demo", *words]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_studies_are_listed_with_what_they_need() -> None:
    code, out, _ = demo("--list-studies", "--json")
    assert code == 0
    studies = {item["name"]: item for item in json.loads(out)["items"]}
    assert studies.keys() == {folder.parent.name for folder in (ROOT / "examples").glob("*/run.yaml")}
    definitions = studies["phenotype-definitions"]
    assert definitions["task"] == "instruction-tuning"
    assert (definitions["sites"], definitions["rounds"], definitions["metric"]) == (3, 3, "loss")
    assert definitions["needs_data"] is None
    code, out, _ = demo("--list-studies")
    assert code == 0
    assert all(name in out for name in studies)


def test_unknown_study_is_exit_code_4_and_lists_what_there_is() -> None:
    code, out, errors = demo("--study", "no-such-study", "--json")
    assert code == 4
    error = json.loads(out)["error"]
    assert error["code"] == "study-unknown"
    assert "phenotype-definitions" in error["advice"]
    assert "phenotype-definitions" in errors


def test_study_without_the_data_that_it_needs_says_where_it_is_had(tmp_path: Path) -> None:
    write_tiny_study(tmp_path / "study")
    file = tmp_path / "study" / "study.yaml"
    folder = "data: {source: a folder, folder: {get: Ask the archive of Springfield., holds: [README.md]}}"
    file.write_text(file.read_text().replace("data: {source: made up on the spot}", folder))
    code, out, errors = demo("--study", str(tmp_path / "study"), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "study-data-missing")
    assert "Ask the archive of Springfield." in errors
    code, out, _ = demo("--study", str(tmp_path / "study"), "--data", str(tmp_path), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "study-data-missing")
    assert "README.md" in json.loads(out)["error"]["message"]


def test_study_with_a_wrong_description_is_refused_with_every_fault(tmp_path: Path) -> None:
    write_tiny_study(tmp_path / "study")
    file = tmp_path / "study" / "study.yaml"
    file.write_text(file.read_text().replace("sites: 3", "sites: 2").replace("better: lower", "better: nicer"))
    code, out, _ = demo("--study", str(tmp_path / "study"), "--json")
    assert code == 2
    faults = json.loads(out)["error"]["faults"]
    assert {fault["path"] for fault in faults} == {"sites", "metric.better"}
