"""A trainer of two processes under the real process runner: the update of one process, and what becomes of failures."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load

import site_agent
from site_agent.errors import JobFailedError, TrainerDiedError
from site_agent.jobs.job_dir import (
    JOB_FILE,
    PAYLOAD_FILE,
    JobKind,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    read_job,
    read_progress,
)
from site_agent.jobs.process import PID_FILE, ProcessRunner, ProcessRunnerOptions
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_records

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
STEPS = 12
# Three records a batch: one process has two of them and the other one.
JOB = {"local": {"batch_size": 3, "steps": STEPS}, "evaluation": {"max_records": 5}}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(site_agent.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
ONE = ProcessRunnerOptions(
    command=(sys.executable, str(HERE / "float32_trainer.py")),
    environment=ENVIRONMENT,
    threads=1,
    restart_wait_s=0.01,
    checkpoint_every_s=0.0,
)
TWO = replace(ONE, processes=2)
# Sums in another order: after twelve steps of AdamW, which divides by small second moments.
TOLERANCE = 0.01


class Site:
    """A model, some records, and job folders as an agent fills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        make_tiny_model(self.model)
        self.records = write_records(folder / "records.jsonl", 40)

    def job_in(self, spool: str, name: str = "0.0", *, kind: JobKind = JobKind.TRAIN) -> tuple[Path, JobSpec]:
        job_dir = self.folder / spool / name
        make_job(job_dir, model_folder=self.model, records=self.records, kind=kind, **JOB)
        job = read_job(job_dir)
        # The runner opens it.
        (job_dir / JOB_FILE).unlink()
        return job_dir, replace(job, timeout_s=500.0)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def update_of_one(site: Site) -> np.ndarray:
    async def run() -> Path:
        job_dir, job = site.job_in("one")
        runner = ProcessRunner(ONE)
        try:
            await runner.run_training_job(job_dir, job, on_progress=lambda _: None)
        finally:
            await runner.stop()
        return job_dir

    return update_in(asyncio.run(run()))


def update_in(job_dir: Path) -> np.ndarray:
    return load((job_dir / PAYLOAD_FILE).read_bytes())["adapter_update"]


def distance(update: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(update - expected) / np.linalg.norm(expected))


def workers_of(spool: Path) -> list[psutil.Process]:
    """The processes that share the jobs of a trainer, the first one first."""
    trainer = psutil.Process(int((spool / PID_FILE).read_text()))
    spawned = [child for child in trainer.children() if "spawn_main" in " ".join(child.cmdline())]
    return sorted(spawned, key=lambda child: child.pid)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not is_so():  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.05)


async def until_gone(processes: list[psutil.Process]) -> None:
    await until(lambda: all(map(is_gone, processes)))


async def until_step(job_dir: Path, step: int) -> None:
    def is_done() -> bool:
        return any(line.state is ProgressState.TRAINING and line.step >= step for line in read_progress(job_dir))

    await until(is_done)


async def test_two_workers_make_the_update_of_one_and_stay_up_until_a_cancel(
    site: Site, update_of_one: np.ndarray
) -> None:
    runner = ProcessRunner(TWO)
    pids: list[set[int]] = []
    jobs = [site.job_in("two", "0.0"), site.job_in("two", "0.1"), site.job_in("two", "eval", kind=JobKind.EVALUATE)]
    try:
        for job_dir, job in jobs:
            result = await runner.run_training_job(job_dir, job, on_progress=lambda _: None)
            assert isinstance(result, JobResult)
            workers = workers_of(job_dir.parent)
            # The copy that the second worker wrote into is gone with its job.
            assert not list(job_dir.parent.glob(".*"))
            pids.append({worker.pid for worker in workers})
        job_dir, job = site.job_in("two", "cancelled")
        running = asyncio.create_task(runner.run_training_job(job_dir, job, on_progress=lambda _: None))
        await until_step(job_dir, 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until_gone(workers)
    finally:
        await runner.stop()
    assert len(pids[0]) == 2
    assert pids[0] == pids[1] == pids[2]
    for job_dir, _ in jobs[:2]:
        assert distance(update_in(job_dir), update_of_one) < TOLERANCE
        told = [(line.state, line.step) for line in read_progress(job_dir)]
        # One process alone wrote into the job's folder: it tells each step once.
        assert len(set(told)) == len(told)
        assert told[-1] == (ProgressState.TRAINING, STEPS)


async def test_one_worker_killed_the_job_goes_on_from_its_checkpoint(site: Site, update_of_one: np.ndarray) -> None:
    job_dir, job = site.job_in("killed")
    killed: list[int] = []

    def kill_once(line: ProgressLine) -> None:
        if not killed and line.state is ProgressState.TRAINING and line.step >= 2:
            worker = workers_of(job_dir.parent)[1]
            killed.append(worker.pid)
            worker.send_signal(signal.SIGKILL)

    lines: list[ProgressLine] = []
    runner = ProcessRunner(TWO)
    try:
        await runner.run_training_job(job_dir, job, on_progress=lambda line: (lines.append(line), kill_once(line))[0])
    finally:
        await runner.stop()
    resumed = [line.step for line in lines if line.is_resumed and line.state is ProgressState.TRAINING]
    assert killed
    assert len(resumed) == 1
    assert resumed[0] >= 2
    assert distance(update_in(job_dir), update_of_one) < TOLERANCE


async def test_workers_that_are_killed_again_and_again_are_a_typed_failure(site: Site) -> None:
    job_dir, job = site.job_in("killed-always")
    runner = ProcessRunner(replace(TWO, n_lives_in_vain=2))

    async def kill_all_who_come() -> None:
        while True:
            with_pid = job_dir.parent / PID_FILE
            if with_pid.exists():
                try:
                    for worker in workers_of(job_dir.parent)[1:]:
                        worker.send_signal(signal.SIGKILL)
                except (psutil.NoSuchProcess, ValueError):
                    pass
            await asyncio.sleep(0.05)

    killer = asyncio.create_task(kill_all_who_come())
    try:
        with pytest.raises(TrainerDiedError) as caught:
            await runner.run_training_job(job_dir, job, on_progress=lambda _: None)
    finally:
        killer.cancel()
        await runner.stop()
    assert caught.value.facts["exit_code"] == 128 + signal.SIGKILL
    assert "memory" in caught.value.advice


async def test_trainer_killed_alone_takes_its_workers_with_it(site: Site) -> None:
    job_dir, job = site.job_in("headless")
    runner = ProcessRunner(replace(TWO, n_lives_in_vain=1))
    running = asyncio.create_task(runner.run_training_job(job_dir, job, on_progress=lambda _: None))
    await until_step(job_dir, 1)
    workers = workers_of(job_dir.parent)
    # The group is not killed here, only the one that hands out jobs.
    psutil.Process(int((job_dir.parent / PID_FILE).read_text())).send_signal(signal.SIGKILL)
    await until_gone(workers)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await runner.stop()


async def test_one_worker_out_of_memory_is_told_as_that_and_the_next_job_is_done(
    site: Site, update_of_one: np.ndarray
) -> None:
    first, first_job = site.job_in("failing", "0.0")
    second, second_job = site.job_in("failing", "0.1")
    runner = ProcessRunner(replace(TWO, command=(sys.executable, str(HERE / "failing_worker.py"))))
    try:
        with pytest.raises(JobFailedError) as caught:
            await runner.run_training_job(first, first_job, on_progress=lambda _: None)
        assert caught.value.facts["failure_code"] == "out-of-memory"
        assert not (first / PAYLOAD_FILE).exists()
        await runner.run_training_job(second, second_job, on_progress=lambda _: None)
    finally:
        await runner.stop()
    assert distance(update_in(second), update_of_one) < TOLERANCE


@pytest.mark.system
async def test_two_workers_need_no_network_but_the_loopback(site: Site, update_of_one: np.ndarray) -> None:
    if os.geteuid() or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root, unshare and ip")
    job_dir, job = site.job_in("no-network")
    inside = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
    runner = ProcessRunner(replace(TWO, command=(*inside, *TWO.command)))
    try:
        await runner.run_training_job(job_dir, job, on_progress=lambda _: None)
    finally:
        await runner.stop()
    assert distance(update_in(job_dir), update_of_one) < TOLERANCE
