from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.support.tiny_study import write_tiny_study
from wardround.errors import StudyDataMissingError, StudyInvalidError, StudyUnknownError, UsageInvalidError
from wardround.studies.catalogue import all_studies, check_data_folder, find_study, prepare_arguments, study_names

ROOT = Path(__file__).parents[4]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        write_tiny_study(tmp_path / name)
    (tmp_path / "notes").mkdir()
    return tmp_path


def with_folder(examples: Path) -> Path:
    file = examples / "second" / "study.yaml"
    folder = "data: {source: a folder, folder: {get: Ask the archive., holds: [README.md]}}"
    file.write_text(file.read_text().replace("data: {source: made up on the spot}", folder))
    return examples


def test_study_that_is_unknown_lists_what_there_is(examples: Path) -> None:
    with pytest.raises(StudyUnknownError) as caught:
        find_study("third", examples)
    assert (caught.value.exit_code, caught.value.code) == (4, "study-unknown")
    assert "first, second" in caught.value.advice


def test_studies_are_the_folders_with_a_description(examples: Path) -> None:
    assert study_names(examples) == ("first", "second")


def test_study_can_be_a_path(examples: Path) -> None:
    study = find_study(str(examples / "second"), Path("nowhere"))
    assert (study.name, study.rounds, study.base_model_name) == ("second", 3, "tiny")


def test_study_without_its_program_is_refused(examples: Path) -> None:
    (examples / "first" / "prepare.py").unlink()
    with pytest.raises(StudyInvalidError) as caught:
        find_study("first", examples)
    assert caught.value.faults[0][0] == "data.program"


def test_study_that_needs_data_says_where_it_is_had(examples: Path) -> None:
    study = find_study("second", with_folder(examples))
    with pytest.raises(StudyDataMissingError) as caught:
        check_data_folder(study, None)
    assert (caught.value.code, caught.value.advice) == ("study-data-missing", "Ask the archive.")


def test_folder_that_is_not_the_study_s_data_is_refused_by_what_it_lacks(examples: Path, tmp_path: Path) -> None:
    study = find_study("second", with_folder(examples))
    (tmp_path / "other").mkdir()
    with pytest.raises(StudyDataMissingError, match=r"README\.md"):
        check_data_folder(study, tmp_path / "other")
    with pytest.raises(StudyDataMissingError, match="no folder"):
        check_data_folder(study, tmp_path / "absent")
    (tmp_path / "other" / "README.md").write_text("data")
    assert check_data_folder(study, tmp_path / "other") == tmp_path / "other"


def test_study_that_takes_no_data_refuses_a_folder(examples: Path) -> None:
    with pytest.raises(UsageInvalidError):
        check_data_folder(find_study("first", examples), examples)


def test_preparation_is_called_with_sites_folder_and_data(examples: Path) -> None:
    study = find_study("second", with_folder(examples))
    words = prepare_arguments(study, n_sites=4, out=Path("out"), data=Path("in"))
    assert words == (str(study.prepare_file), "--sites", "4", "--out", "out", "--data", "in")


def test_every_study_that_ships_is_described_and_its_run_is_valid() -> None:
    from fl_protocol.spec.run_spec import parse_run_spec

    studies = all_studies(ROOT / "examples")
    assert "phenotype-definitions" in {study.name for study in studies}
    for study in studies:
        spec = parse_run_spec(study.run_spec)
        assert spec.task.kind.value == study.task_kind
        assert study.description.metric.name in {metric.value for metric in spec.evaluation.metrics}
