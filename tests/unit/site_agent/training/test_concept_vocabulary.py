"""The vocabulary run at a site: a list of codes as a base, the counts, and the vocabulary of a release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobFailure, JobKind, JobResult
from site_agent.training.__main__ import main
from site_agent.training.closing import close_job
from site_agent.training.code_list import make_code_list, make_vocabulary
from site_agent.training.data import split_dataset
from site_agent.training.errors import AdapterUnreadableError, VocabularyInvalidError
from site_agent.training.formats import format_called
from site_agent.training.model_files import digest_model_folder
from site_agent.training.shelf import ModelShelf
from tests.support.timeline_jobs import CODES, bound, make_base, make_timeline_job, write_rows, write_vocabulary
from tests.support.training_jobs import layout_of, spec_document

pytestmark = pytest.mark.training


@pytest.fixture
def code_list(tmp_path: Path) -> Path:
    # A code that nobody has, and one fewer than the patients have.
    listed = write_vocabulary(tmp_path / "codes.txt", ("AE/NOBODY", *CODES[:-1]))
    make_code_list(listed, out=tmp_path / "list")
    return tmp_path / "list"


def document_on(base: Path) -> dict[str, object]:
    document = spec_document(digest_model_folder(base))
    evaluation = {"every": 1, "metrics": ["loss"], "holdout_fraction": 0.25, "max_records": 8}
    return {
        **document,
        "task": {"kind": "concept-vocabulary", "threshold": 2, "min_sites": 2, "site_minimum": 1},
        "adapter": {"kind": "published-codes"},
        "aggregation": {"algorithm": "thresholded-counts"},
        "evaluation": evaluation,
        "rounds": 1,
    }


def test_job_counts_patients_who_are_not_held_out(code_list: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    spec = make_timeline_job(tmp_path / "job", document_on(code_list), base=code_list, rows=rows)
    result = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(result, JobResult), result
    dataset = format_called("timeline-rows").read(rows, patient_field="patient_id")
    held_out = {record.person for record in split_dataset(dataset, holdout_fraction=0.25, max_records=99).held_out}
    assert 0 < len(held_out) < 24
    # The oracle reads the file's lines itself.
    having: dict[str, set[str]] = {}
    for line in rows.read_text().splitlines()[1:]:
        patient, _, code, _, _ = line.split(",")
        if patient not in held_out:
            having.setdefault(code, set()).add(patient)
    raw = tensors_from_bytes((tmp_path / "job" / PAYLOAD_FILE).read_bytes())
    assert set(raw) == {"code_patients"}
    assert raw["code_patients"].tolist() == [0, *(len(having[code]) for code in CODES[:-1])]
    algorithm = ALGORITHMS["thresholded-counts"]
    algorithm.weigh(raw, n_records=result.records, spec=spec, layout=layout_of(tmp_path / "job"), kind=RoundKind.TRAIN)


def test_job_of_an_evaluation_round_adds_nothing(code_list: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    job = tmp_path / "job"
    make_timeline_job(job, document_on(code_list), base=code_list, rows=rows, kind=JobKind.EVALUATE)
    assert isinstance(close_job(job, shelf=ModelShelf()), JobResult)
    raw = tensors_from_bytes((job / PAYLOAD_FILE).read_bytes())
    assert {name: array.tolist() for name, array in raw.items()} == {"eval_records": [0]}


def test_job_whose_base_is_a_model_or_another_list_is_refused(code_list: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    make_timeline_job(tmp_path / "job", document_on(code_list), base=code_list, rows=rows)
    write_vocabulary(code_list / "vocab.txt", CODES)
    failure = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "base-model-digest-mismatch"
    model = make_base(tmp_path / "model")
    with pytest.raises(VocabularyInvalidError):
        bound(document_on(model), model)


def test_list_has_the_same_digest_each_time_and_another_for_another_list(tmp_path: Path) -> None:
    told = []
    for number, codes in enumerate((CODES, CODES, CODES[1:])):
        listed = write_vocabulary(tmp_path / f"{number}.txt", codes)
        told.append(make_code_list(listed, out=tmp_path / f"list-{number}"))
    assert told[0] == told[1]
    assert told[0]["base_model_sha256"] != told[2]["base_model_sha256"]


def test_layout_is_one_number_a_code(code_list: Path) -> None:
    spec, layout, state = bound(document_on(code_list), code_list)
    check_layout(layout, spec.adapter)
    assert layout.n_parameters == 8
    assert state.adapter["published"].tolist() == [0.0] * 8


def release(folder: Path, published: list[float]) -> Path:
    folder.mkdir()
    tensors = {"published": np.array(published, dtype=np.float32)}
    (folder / "model.safetensors").write_bytes(bytes_from_tensors(tensors))
    return folder


def test_vocabulary_of_a_release_is_its_published_codes_in_the_list_s_order(
    code_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = release(tmp_path / "release", [0, 1, 0, 1, 0, 0, 0, 0])
    out = tmp_path / "vocab.txt"
    arguments = [
        "make-vocabulary",
        "--release",
        str(folder),
        "--code-list",
        str(code_list),
        "--out",
        str(out),
        "--json",
    ]
    assert main(arguments) == 0
    assert out.read_text() == f"{CODES[0]}\n{CODES[2]}\n"
    assert json.loads(capsys.readouterr().out)["n_codes"] == 2


@pytest.mark.parametrize("published", [[1.0] * 7, [0.5] * 8])
def test_release_of_another_list_is_refused(code_list: Path, tmp_path: Path, published: list[float]) -> None:
    folder = release(tmp_path / "release", published)
    with pytest.raises(AdapterUnreadableError):
        make_vocabulary(folder, code_list=code_list, out=tmp_path / "vocab.txt")
    with pytest.raises(AdapterUnreadableError):
        make_vocabulary(tmp_path / "nowhere", code_list=code_list, out=tmp_path / "vocab.txt")


def test_release_that_publishes_nothing_makes_no_vocabulary(code_list: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabularyInvalidError):
        make_vocabulary(release(tmp_path / "r", [0.0] * 8), code_list=code_list, out=tmp_path / "vocab.txt")
