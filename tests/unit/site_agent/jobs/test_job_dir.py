from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from site_agent.jobs import documents
from site_agent.jobs.job_dir import (
    JOB_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    BaseModelFolder,
    DataFile,
    DeviceChoice,
    JobFailure,
    JobFileInvalidError,
    JobFileMissingError,
    JobKind,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    append_progress,
    read_job,
    read_progress,
    read_result,
    write_document,
    write_file,
    write_job,
    write_result,
)

JOB = JobSpec(
    job_id="round-2-attempt-0",
    kind=JobKind.TRAIN,
    run_id="run-" + "a" * 26,
    round_index=2,
    round_attempt=1,
    run_spec={"name": "x", "rounds": 3},
    base_model=BaseModelFolder(path="models/tiny", sha256="ab" * 32),
    data=DataFile(path="data/records.jsonl", sha256="ef" * 32),
    seed=2**64 - 1,
    threads=2,
    device=DeviceChoice.CPU,
    timeout_s=30.5,
)

RESULT = JobResult(
    records=10,
    patients=7,
    held_out_records=2,
    seconds=1.5,
    peak_memory_bytes=12345,
    device="cpu",
    precision="float32",
    versions={"torch": "2"},
    sha256="cd" * 32,
    metrics={"train_loss": 2.5},
)

LINE = ProgressLine(
    state=ProgressState.TRAINING, step=12, steps=40, loss=2.1, records_per_s=31.0, at="2024-02-29T00:00:00+00:00"
)


def document_of_job(**changes: object) -> dict[str, object]:
    return {**JOB.to_document(), **changes}


def test_job_written_and_read_is_the_same(tmp_path: Path) -> None:
    write_job(tmp_path, JOB)
    assert read_job(tmp_path) == JOB


def test_job_file_has_the_names_of_the_contract(tmp_path: Path) -> None:
    write_job(tmp_path, JOB)
    document = json.loads((tmp_path / "job.json").read_text())
    assert document["base_model"] == {"path": "models/tiny", "sha256": "ab" * 32}
    assert document["data"] == {"path": "data/records.jsonl", "format": "jsonl", "sha256": "ef" * 32}
    assert (document["kind"], document["device"], document["seed"]) == ("train", "cpu", 2**64 - 1)


def test_job_of_an_inspection_needs_neither_model_nor_run(tmp_path: Path) -> None:
    job = JobSpec(job_id="look", kind=JobKind.INSPECT, data=DataFile(path="x"), seed=0, timeout_s=1.0)
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"job_id": "../up"}, "job_id"),
        ({"job_id": ""}, "job_id"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"seed": True}, "seed"),
        ({"threads": 0}, "threads"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": None}, "timeout_s"),
        ({"kind": "dance"}, "kind"),
        ({"device": "tpu"}, "device"),
        ({"round_index": -1}, "round_index"),
        ({"run_spec": None}, "run_spec"),
        ({"base_model": None}, "run_spec"),
        ({"base_model": {"path": "x"}}, "base_model.sha256"),
        ({"base_model": "x"}, "base_model"),
        ({"data": None}, "data"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_job_with_a_fault_is_refused_with_its_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(JobFileInvalidError) as caught:
        JobSpec.from_document(document_of_job(**changes))
    assert caught.value.facts["field"] == field


def test_job_missing_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(JobFileMissingError) as caught:
        read_job(tmp_path)
    assert caught.value.facts == {"file": JOB_FILE}


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\xff"])
def test_job_that_is_no_json_object_is_a_typed_error(tmp_path: Path, content: str) -> None:
    (tmp_path / JOB_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(JobFileInvalidError):
        read_job(tmp_path)


@pytest.mark.parametrize(
    "outcome",
    [RESULT, JobFailure(code="dataset-malformed", message="m", advice="a", facts={"record": 3, "field": "id"})],
)
def test_result_written_and_read_is_the_same(tmp_path: Path, outcome: JobResult | JobFailure) -> None:
    assert read_result(tmp_path) is None
    write_result(tmp_path, outcome)
    assert read_result(tmp_path) == outcome


@pytest.mark.parametrize(
    "document", [{"status": "half"}, {}, {**RESULT.to_document(), "records": "ten"}, {"status": "failed"}]
)
def test_result_that_is_not_of_the_contract_is_refused(tmp_path: Path, document: dict[str, object]) -> None:
    write_document(tmp_path / RESULT_FILE, document)
    with pytest.raises(JobFileInvalidError):
        read_result(tmp_path)


def test_document_with_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(JobFileInvalidError):
        write_document(tmp_path / RESULT_FILE, {"seconds": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_file_is_replaced_whole_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "payload"
    write_file(target, b"old")

    def fail(self: Path, other: Path) -> Path:
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_file(target, b"new")
    assert target.read_bytes() == b"old"


def test_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(documents.os, "fsync", lambda handle: (seen.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append("rename"), replace(self, to))[1])
    write_file(tmp_path / "x", b"content")
    assert seen == ["fsync", "rename", "fsync"]


def test_job_of_an_agent_that_names_no_data_digest_is_read(tmp_path: Path) -> None:
    (tmp_path / JOB_FILE).write_text(json.dumps(document_of_job(data={"path": "x", "format": "jsonl"})))
    assert read_job(tmp_path).data == DataFile(path="x", sha256=None)


def test_file_that_cannot_be_finished_leaves_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_handle: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(documents.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_file(tmp_path / "payload", b"new")
    assert list(tmp_path.iterdir()) == []


def test_file_is_for_its_owner_alone_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_file(tmp_path / "payload", b"plain update")
    finally:
        os.umask(before)
    assert (tmp_path / "payload").stat().st_mode & 0o777 == 0o600


def test_progress_of_a_resumed_job_says_so(tmp_path: Path) -> None:
    append_progress(tmp_path, LINE)
    append_progress(tmp_path, replace(LINE, is_resumed=True))
    assert read_progress(tmp_path) == (LINE, replace(LINE, is_resumed=True))
    assert '"is_resumed"' not in (tmp_path / PROGRESS_FILE).read_text().splitlines()[0]


def test_progress_is_read_line_by_line_and_the_unfinished_line_is_left(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == ()
    append_progress(tmp_path, LINE)
    append_progress(tmp_path, LINE)
    with (tmp_path / PROGRESS_FILE).open("a") as stream:
        stream.write('garbage\n{"state": "training", "st')
    assert read_progress(tmp_path) == (LINE, LINE)
