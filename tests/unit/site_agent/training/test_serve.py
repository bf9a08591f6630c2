from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from site_agent.jobs.job_dir import RESULT_FILE
from site_agent.training.progress import TrainerStopped
from site_agent.training.serve import StopSignal, open_jobs, serve


def open_job(spool: Path, name: str, at: int) -> Path:
    folder = spool / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    os.utime(folder / "job.json", ns=(at, at))
    return folder


def test_open_jobs_are_those_without_a_result_oldest_first(tmp_path: Path) -> None:
    young, old, closed = (open_job(tmp_path, name, at) for name, at in (("a", 30), ("b", 10), ("c", 20)))
    (closed / RESULT_FILE).write_text("{}")
    (tmp_path / "not-yet").mkdir()
    assert open_jobs(tmp_path) == [old, young]


def test_serve_does_each_job_once_and_says_that_it_is_ready(tmp_path: Path) -> None:
    folders = [open_job(tmp_path, name, at) for at, name in enumerate("abc")]
    seen: list[Path] = []

    def close(job_dir: Path, _should_stop: Callable[[], bool]) -> None:
        assert (tmp_path / "ready.json").exists()
        seen.append(job_dir)
        (job_dir / RESULT_FILE).write_text("{}")

    serve(tmp_path, close, should_stop=lambda: len(seen) == 3)
    assert seen == folders
    assert not (tmp_path / "ready.json").exists()


def test_serve_ends_when_a_job_is_stopped_and_leaves_it_open(tmp_path: Path) -> None:
    folder = open_job(tmp_path, "a", 1)

    def close(_job_dir: Path, _should_stop: Callable[[], bool]) -> None:
        raise TrainerStopped

    serve(tmp_path, close, should_stop=lambda: False)
    assert open_jobs(tmp_path) == [folder]
    assert not (tmp_path / "ready.json").exists()


def test_serve_goes_on_when_the_agent_deletes_a_folder_under_its_job(tmp_path: Path) -> None:
    folders = [open_job(tmp_path, name, at) for at, name in enumerate("ab")]
    seen: list[Path] = []

    def close(job_dir: Path, _should_stop: Callable[[], bool]) -> None:
        seen.append(job_dir)
        if job_dir == folders[0]:
            shutil.rmtree(job_dir)
        (job_dir / RESULT_FILE).write_text("{}")

    serve(tmp_path, close, should_stop=lambda: len(seen) == 2)
    assert seen == folders


def test_serve_ends_on_a_file_that_is_missing_in_a_folder_that_is_there(tmp_path: Path) -> None:
    open_job(tmp_path, "a", 1)

    def close(job_dir: Path, _should_stop: Callable[[], bool]) -> None:
        (job_dir / "not-there").read_bytes()

    with pytest.raises(FileNotFoundError):
        serve(tmp_path, close, should_stop=lambda: False)


def test_stop_signal_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        # A container's standard input is no pipe; its end means nothing.
        monkeypatch.setattr("sys.stdin", nothing)
        signal = StopSignal(tmp_path)
        assert not signal()
        (tmp_path / "stop").touch()
        assert signal()
