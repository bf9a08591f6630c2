"""The trainer's program as an agent starts it: a process, a spool folder, a pipe that closes when the agent is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import site_agent
from site_agent.jobs.job_dir import READY_FILE, JobFailure, JobResult, read_result
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_records

pytestmark = pytest.mark.training

PATIENCE_S = 90.0


@contextmanager
def warm_trainer(spool: Path) -> Iterator[subprocess.Popen[bytes]]:
    spool.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(site_agent.__file__).parents[1])}
    with (spool / "trainer.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "site_agent.training", "serve", "--spool", str(spool)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process.poll() is None, "the trainer ended"
        assert time.monotonic() < deadline, "the trainer is late"
        time.sleep(0.05)


def test_warm_trainer_does_good_and_bad_jobs_and_ends_when_its_agent_is_gone(tmp_path: Path) -> None:
    model, spool = tmp_path / "model", tmp_path / "spool"
    make_tiny_model(model)
    records = write_records(tmp_path / "records.jsonl", 40)
    with warm_trainer(spool) as process:
        wait_until((spool / READY_FILE).exists, process)
        make_job(spool / "round-0", model_folder=model, records=records)
        wait_until(lambda: read_result(spool / "round-0") is not None, process)
        assert isinstance(read_result(spool / "round-0"), JobResult)
        make_job(spool / "bad", model_folder=model, records=tmp_path / "none.jsonl")
        wait_until(lambda: read_result(spool / "bad") is not None, process)
        failure = read_result(spool / "bad")
        assert isinstance(failure, JobFailure)
        assert failure.code == "dataset-missing"
        make_job(spool / "round-1", model_folder=model, records=records)
        wait_until(lambda: read_result(spool / "round-1") is not None, process)
        # A failed job in between changes nothing.
        payloads = [(spool / name / "payload.safetensors").read_bytes() for name in ("round-0", "round-1")]
        assert payloads[0] == payloads[1]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    assert not (spool / READY_FILE).exists()


def test_warm_trainer_ends_when_its_spool_says_so(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "stop").touch()
    with warm_trainer(spool) as process:
        assert process.wait(PATIENCE_S) == 0
