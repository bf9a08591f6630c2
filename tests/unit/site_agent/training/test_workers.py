"""Who does a trainer's jobs: this process, or why none does. Teams of real processes are in the integration tests."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from site_agent.jobs.job_dir import CHECKPOINT_FOLDER, PAYLOAD_FILE, JobFailure, read_result
from site_agent.training import workers
from site_agent.training.__main__ import build_parser, process_count
from site_agent.training.progress import never_stops

pytestmark = pytest.mark.training


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("1", 1), ("8", 8)])
def test_number_of_processes_is_a_number_or_auto(text: str, expected: int | None) -> None:
    assert process_count(text) == expected


@pytest.mark.parametrize("text", ["0", "-2"])
def test_number_of_processes_below_one_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        process_count(text)


@pytest.mark.parametrize("words", [["serve", "--spool", "x"], ["run", "x"]])
def test_one_process_does_the_jobs_where_nothing_is_said(words: list[str]) -> None:
    assert build_parser().parse_args(words).processes == 1


def test_more_processes_than_gpus_is_a_typed_failure_of_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_n_gpus", lambda: 2)
    for name in ("0.0", "1.0"):
        (tmp_path / name / CHECKPOINT_FOLDER).mkdir(parents=True)
        (tmp_path / name / PAYLOAD_FILE).write_bytes(b"of an earlier trainer")
    with workers.job_closer(processes=3, checkpoint_every_s=30.0, should_stop=never_stops) as close:
        for name in ("0.0", "1.0"):
            close(tmp_path / name, never_stops)
            failure = read_result(tmp_path / name)
            assert isinstance(failure, JobFailure)
            assert failure.code == "device-unavailable"
            assert failure.facts == {"processes": 3, "gpus": 2}
            assert "runner.processes" in failure.advice
            assert [path.name for path in (tmp_path / name).iterdir()] == ["result.json"]


def test_auto_without_a_gpu_is_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_n_gpus", lambda: 0)
    monkeypatch.setattr(workers, "WorkerTeam", None)
    (tmp_path / "0.0").mkdir()
    with workers.job_closer(processes=None, checkpoint_every_s=30.0, should_stop=never_stops) as close:
        close(tmp_path / "0.0", never_stops)
    failure = read_result(tmp_path / "0.0")
    assert isinstance(failure, JobFailure)
    assert failure.code == "job-file-missing"
