"""``serve-spools`` with the real trainer: a job of a tiny model, a dataset that is looked at, a health check."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from site_agent.datasets.errors import DatasetFileError
from site_agent.datasets.inspector import DataDescription, JobInspector, SubprocessInspector
from site_agent.errors import JobFailedError
from site_agent.jobs.job_dir import JOB_FILE, DeviceChoice, JobResult, read_job
from site_agent.jobs.record_schema import schema_from_document
from site_agent.jobs.spool import SpoolRunner, SpoolRunnerOptions
from site_agent.jobs.spool_files import is_trainer_alive
from tests.contract.runners.conftest import ROOT, wait_until
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import SECRET, make_job, write_records

pytestmark = pytest.mark.training

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PROGRAM = [sys.executable, "-m", "site_agent.training"]


@contextmanager
def trainer(jobs: Path, **variables: str) -> Iterator[int]:
    """Its process id."""
    with (jobs.parent / "trainer.log").open("ab") as said:
        process = subprocess.Popen(
            [*PROGRAM, "serve-spools", "--jobs", str(jobs)],
            env={**ENVIRONMENT, **variables},
            stdout=said,
            stderr=said,
        )
        try:
            wait_until(lambda: is_trainer_alive(jobs), "no heartbeat")
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


async def test_rounds_of_a_tiny_model_are_trained_and_a_missing_gpu_is_said(tmp_path: Path, jobs: Path) -> None:
    model, heard = tmp_path / "model", []
    make_tiny_model(model)
    records = write_records(tmp_path / "records.jsonl", 40)
    runner = SpoolRunner(SpoolRunnerOptions(jobs_dir=jobs))
    with trainer(jobs):
        for name in ("0.0", "1.0"):
            make_job(jobs / "run-a" / name, model_folder=model, records=records)
            job = read_job(jobs / "run-a" / name)
            result = await runner.run_training_job(jobs / "run-a" / name, job, on_progress=heard.append)
            assert isinstance(result, JobResult)
            assert result.records == 40
        payloads = [(jobs / "run-a" / name / "payload.safetensors").read_bytes() for name in ("0.0", "1.0")]
        assert payloads[0] == payloads[1]
        assert max(line.step for line in heard if line.state == "training") == 3
        # Made elsewhere: a job file in the spool is begun as it stands there, before it could name the GPU.
        make_job(tmp_path / "made", model_folder=model, records=records)
        gpu = replace(read_job(tmp_path / "made"), device=DeviceChoice.CUDA)
        (tmp_path / "made" / JOB_FILE).unlink()
        (tmp_path / "made").rename(jobs / "run-a" / "2.0")
        with pytest.raises(JobFailedError) as failed:
            await runner.run_training_job(jobs / "run-a" / "2.0", gpu, on_progress=heard.append)
    assert failed.value.failure_code == "device-unavailable"
    assert failed.value.advice


def test_threads_that_the_programs_own_environment_allows_bound_its_jobs(tmp_path: Path, jobs: Path) -> None:
    model = tmp_path / "model"
    make_tiny_model(model)
    folder = jobs / "run-a" / "0.0"
    make_job(folder, model_folder=model, records=write_records(tmp_path / "records.jsonl", 12))
    runner = SpoolRunner(SpoolRunnerOptions(jobs_dir=jobs))
    with trainer(jobs, OMP_NUM_THREADS="3") as process_id:
        asyncio.run(runner.run_training_job(folder, read_job(folder), on_progress=lambda _: None))
        (child,) = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=3" in environment


@pytest.fixture
def good(tmp_path: Path) -> DataDescription:
    return DataDescription(path=write_records(tmp_path / "records.jsonl", 12), format="jsonl")


def test_dataset_is_looked_at_by_the_trainer_as_by_a_process(tmp_path: Path, jobs: Path, good: DataDescription) -> None:
    schema = schema_from_document({"id": {"type": "text"}, "prompt": {"type": "text"}})
    bad = replace(good, schema=schema)
    runner = SpoolRunner(SpoolRunnerOptions(jobs_dir=jobs))
    with trainer(jobs):
        inspector = JobInspector(runner, jobs)
        assert inspector.inspect(good) == SubprocessInspector().inspect(good)
        told: list[DatasetFileError] = []
        for looks in (inspector, SubprocessInspector()):
            with pytest.raises(DatasetFileError) as caught:
                looks.inspect(bad)
            told.append(caught.value)
        with pytest.raises(DatasetFileError) as missing:
            inspector.inspect(replace(good, path=tmp_path / "none.jsonl"))
    assert told[0].faults == told[1].faults
    assert (told[0].failure_code, told[0].message, told[0].n_faults) == (
        told[1].failure_code,
        told[1].message,
        told[1].n_faults,
    )
    assert SECRET not in str(told[0])
    assert missing.value.failure_code == "dataset-missing"
    # Nothing of an inspection stays.
    assert list((jobs / "inspections").iterdir()) == []


def test_health_check_says_whether_a_trainer_lives(jobs: Path) -> None:
    words = [*PROGRAM, "doctor", "--live", "--jobs", str(jobs), "--json"]
    dead = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False)
    assert dead.returncode == 1
    assert len(dead.stderr.strip().splitlines()) == 1
    with trainer(jobs):
        alive = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False)
    assert alive.returncode == 0
    assert json.loads(alive.stdout) == {"trainer": "alive"}
    # The heartbeat that stays is old in half a minute.
    old = is_trainer_alive(jobs, now_s=(jobs / "trainer.json").stat().st_mtime + 31)
    assert not old


def test_jobs_folder_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    words = [*PROGRAM, "serve-spools", "--jobs", str(tmp_path / "none")]
    said = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 1
    assert "mount the agent's jobs volume" in said.stderr
