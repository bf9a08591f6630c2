"""Real trainer processes that are killed: the payload is that of an undisturbed one, bit for bit."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import site_agent
from site_agent.jobs.job_dir import (
    CHECKPOINT_FOLDER,
    JOB_FILE,
    PAYLOAD_FILE,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    read_job,
    read_progress,
)
from site_agent.jobs.process import PID_FILE, ProcessRunner, ProcessRunnerOptions, end_orphans
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_records

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

STEPS = 60
HARD = {
    "adapter": {"dropout": 0.25},
    "local": {"steps": STEPS, "batch_size": 2, "accumulation": 2, "warmup_steps": 10},
    "evaluation": {"max_records": 40, "holdout_fraction": 0.5},
}
DYING = Path(__file__).parent / "dying_trainer.py"
AGENT = Path(__file__).parent / "small_agent.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(site_agent.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
OPTIONS = ProcessRunnerOptions(environment=ENVIRONMENT, threads=1, restart_wait_s=0.01, checkpoint_every_s=0.0)


class Federation:
    """A model, some records, and as many spools with the same job as asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        make_tiny_model(self.model)
        self.records = write_records(folder / "records.jsonl", 80)

    def job_in(self, spool: str) -> tuple[Path, JobSpec]:
        job_dir = self.folder / spool / "0.0"
        make_job(job_dir, model_folder=self.model, records=self.records, **HARD)
        job = read_job(job_dir)
        # The runner opens it.
        (job_dir / JOB_FILE).unlink()
        return job_dir, replace(job, timeout_s=900.0)


async def run(runner: ProcessRunner, job_dir: Path, job: JobSpec) -> tuple[JobResult, list[ProgressLine]]:
    lines: list[ProgressLine] = []
    try:
        result = await runner.run_training_job(job_dir, job, on_progress=lines.append)
    finally:
        await runner.stop()
    return result, lines


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> tuple[bytes, JobResult]:
    job_dir, job = federation.job_in("undisturbed")
    result, lines = asyncio.run(run(ProcessRunner(replace(OPTIONS, checkpoint_every_s=None)), job_dir, job))
    assert not any(line.is_resumed for line in lines)
    return (job_dir / PAYLOAD_FILE).read_bytes(), result


class Killer:
    """Listens to a job, and kills -9 its trainer as soon as it hears that one of these steps is done."""

    def __init__(self, spool: Path, steps: list[int]) -> None:
        self._spool = spool
        self._steps = list(steps)
        self.lines: list[ProgressLine] = []

    def __call__(self, line: ProgressLine) -> None:
        self.lines.append(line)
        if line.state is ProgressState.TRAINING and self._steps and line.step >= self._steps[0]:
            self._steps.pop(0)
            os.kill(int((self._spool / PID_FILE).read_text()), signal.SIGKILL)


async def test_trainer_killed_at_random_steps_gives_the_same_payload(
    federation: Federation, undisturbed: tuple[bytes, JobResult]
) -> None:
    job_dir, job = federation.job_in("random")
    steps = sorted(random.Random(20261125).sample(range(1, STEPS - 15), 2))
    killer = Killer(job_dir.parent, steps)
    runner = ProcessRunner(OPTIONS)
    try:
        result = await runner.run_training_job(job_dir, job, on_progress=killer)
    finally:
        await runner.stop()
    resumed_at = [line.step for line in killer.lines if line.is_resumed and line.state is ProgressState.TRAINING]
    # Looked at ten times a second: the kill comes some steps after the one that was waited for.
    assert len(resumed_at) == len(steps)
    assert all(resumed >= step for step, resumed in zip(steps, resumed_at, strict=True))
    assert (job_dir / PAYLOAD_FILE).read_bytes() == undisturbed[0]
    assert result.metrics == undisturbed[1].metrics
    assert not (job_dir / CHECKPOINT_FOLDER).exists()


@pytest.mark.parametrize(
    ("place", "number", "expected"),
    [
        # Two reports of loading and one of the evaluation's beginning come before its second batch.
        ("report", 5, [(ProgressState.EVALUATING, 16)]),
        # Five checkpoints of the evaluation's batches, and that of the seventh step is never finished.
        ("checkpoint-half-written", 12, [(ProgressState.TRAINING, 6)]),
        ("before-result", 1, [(ProgressState.TRAINING, STEPS)]),
    ],
)
async def test_trainer_killed_at_an_exact_place_gives_the_same_payload(
    federation: Federation,
    undisturbed: tuple[bytes, JobResult],
    place: str,
    number: int,
    expected: list[tuple[ProgressState, int]],
) -> None:
    job_dir, job = federation.job_in(f"{place}-{number}")
    command = (sys.executable, str(DYING), place, str(number))
    result, lines = await run(ProcessRunner(replace(OPTIONS, command=command)), job_dir, job)
    assert (job_dir.parent / "died").exists()
    resumed = [(line.state, line.step) for line in lines if line.is_resumed]
    assert resumed == expected
    assert (job_dir / PAYLOAD_FILE).read_bytes() == undisturbed[0]
    assert result.metrics == undisturbed[1].metrics


async def test_agent_killed_mid_training_costs_the_steps_since_the_last_checkpoint(
    federation: Federation, undisturbed: tuple[bytes, JobResult]
) -> None:
    job_dir, job = federation.job_in("agent/run-a")
    arguments = (str(job_dir), json.dumps(job.to_document()))
    agent = await asyncio.create_subprocess_exec(sys.executable, str(AGENT), *arguments, env=ENVIRONMENT)
    while not any(line.step >= 5 for line in read_progress(job_dir) if line.state is ProgressState.TRAINING):
        assert agent.returncode is None
        await asyncio.sleep(0.005)
    orphan = int((job_dir.parent / PID_FILE).read_text())
    agent.kill()
    await agent.wait()
    await asyncio.to_thread(end_orphans, federation.folder / "agent")
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
    n_before = len(read_progress(job_dir))
    result, lines = await run(ProcessRunner(OPTIONS), job_dir, job)
    after = [line for line in lines[n_before:] if line.state is ProgressState.TRAINING]
    assert after[0].is_resumed
    assert after[0].step >= 4
    assert (job_dir / PAYLOAD_FILE).read_bytes() == undisturbed[0]
    assert result.metrics == undisturbed[1].metrics
