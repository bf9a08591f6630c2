from __future__ import annotations

from collections.abc import Mapping

import pytest

from wardround.errors import StudyInvalidError
from wardround.studies.description import Arm, Better, read_description

DOCUMENT: dict[str, object] = {
    "title": "Define things",
    "seed_system": "OpenFedLLM",
    "data": {"source": "a package"},
    "base_model": {"builder": "convert_gguf.py"},
    "sites": 3,
    "metric": {"name": "loss", "unit": "nats", "better": "lower"},
    "table": {"seeds": 3},
}


def faults_of(document: Mapping[str, object]) -> set[str]:
    with pytest.raises(StudyInvalidError) as caught:
        read_description(document, source="study.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.code == "study-invalid"
    return {path for path, _ in caught.value.faults}


def test_description_fills_in_what_is_left_out() -> None:
    study = read_description(DOCUMENT, source="study.yaml")
    assert study.data.prepare.program == "prepare.py"
    assert study.data.file_of(3, "ucsf") == "site-3.jsonl"
    assert (study.data.data_format, study.data.folder) == ("jsonl", None)
    assert study.table.arms == (Arm.BEFORE, Arm.FEDERATED, Arm.POOLED, Arm.LOCAL)
    assert (study.table.search, study.table.rounds) == (None, None)
    assert study.table.without == ()


def test_description_that_leaves_sites_out_has_the_arm_for_it() -> None:
    study = read_description({**DOCUMENT, "sites": 4, "table": {"without": [4, 1]}}, source="study.yaml")
    assert study.table.arms == (Arm.BEFORE, Arm.FEDERATED, Arm.POOLED, Arm.LOCAL, Arm.WITHOUT)
    assert study.table.without == (4, 1)


@pytest.mark.parametrize(
    "table",
    [
        {"without": [4]},
        {"without": [0]},
        {"without": ["ucsf"]},
        {"arms": ["federated", "without"]},
        {"arms": ["federated", "local"], "without": [1]},
    ],
)
def test_description_that_leaves_out_what_is_not_there_is_refused(table: Mapping[str, object]) -> None:
    assert "table.without" in faults_of({**DOCUMENT, "table": table})


def test_description_keeps_what_is_said() -> None:
    data = {
        "source": "a folder",
        "program": "make.py",
        "arguments": ["--fast"],
        "file": "rows-{number}.csv",
        "format": "timeline-csv",
        "folder": {"get": "Ask for it.", "holds": ["README.md"]},
    }
    table = {
        "seeds": 2,
        "rounds": 5,
        "command": "timelines",
        "arms": ["federated", "local"],
        "search": {"learning_rates": [1.0e-3, 2], "steps": [4, 8], "validation_fraction": 0.2},
    }
    metric = {"name": "p_at_1", "unit": "part", "better": "higher"}
    study = read_description({**DOCUMENT, "data": data, "table": table, "metric": metric}, source="study.yaml")
    assert study.data.file_of(12, "ucsf") == "rows-12.csv"
    assert study.data.folder is not None
    assert study.data.folder.holds == ("README.md",)
    assert study.data.prepare.arguments == ("--fast",)
    assert study.metric.better is Better.HIGHER
    assert study.table.search is not None
    assert study.table.search.learning_rates == (1.0e-3, 2.0)
    assert study.table.search.steps == (4, 8)
    assert study.table.command == "timelines"
    assert study.table.arms == (Arm.FEDERATED, Arm.LOCAL)


def test_description_that_is_wrong_is_refused_with_every_fault() -> None:
    wrong = {
        **DOCUMENT,
        "title": "",
        "sites": 2,
        "metric": {"name": "loss", "unit": "nats", "better": "smaller"},
        "table": {"arms": ["federated", "alone"], "search": {"learning_rates": [-1], "steps": [1.5]}},
        "extra": 1,
    }
    assert faults_of(wrong) == {
        "title",
        "sites",
        "metric.better",
        "table.arms",
        "table.search.learning_rates",
        "table.search.steps",
        "extra",
    }


@pytest.mark.parametrize("name", ["../prepare.py", "/bin/sh", "a/b.py", ".hidden"])
def test_program_outside_the_study_s_folder_is_refused(name: str) -> None:
    data = {"source": "a package", "program": name}
    assert faults_of({**DOCUMENT, "data": data, "base_model": {"builder": name}}) == {
        "data.program",
        "base_model.builder",
    }


@pytest.mark.parametrize("name", ["site.jsonl", "{number}{number}.csv", "../{number}.csv"])
def test_dataset_file_without_one_number_is_refused(name: str) -> None:
    assert faults_of({**DOCUMENT, "data": {"source": "a package", "file": name}}) == {"data.file"}


def test_metric_says_which_of_two_figures_is_better() -> None:
    lower = read_description(DOCUMENT, source="s").metric
    higher = read_description({**DOCUMENT, "metric": {"name": "a", "unit": "b", "better": "higher"}}, source="s").metric
    assert lower.is_better(1.0, 2.0)
    assert not lower.is_better(2.0, 2.0)
    assert higher.is_better(2.0, 1.0)
    assert not higher.is_better(1.0, 2.0)
