"""The spool runner beyond the contract: a trainer that is not there, dies whole, or goes on without an agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from site_agent.errors import TrainerAbsentError, TrainerDiedError
from site_agent.jobs.job_dir import DataFile, JobKind, JobSpec, write_job
from site_agent.jobs.spool import SpoolRunner, SpoolRunnerOptions
from site_agent.jobs.spool_files import is_trainer_alive, read_heartbeat
from tests.contract.runners.conftest import BEHAVING, overseer, wait_until


def job(name: str = "0.0") -> JobSpec:
    return JobSpec(job_id=name, kind=JobKind.INSPECT, data=DataFile(path="x"), seed=7, timeout_s=60.0)


def runner_on(jobs: Path, **options: float) -> SpoolRunner:
    return SpoolRunner(SpoolRunnerOptions(jobs_dir=jobs, **options))  # type: ignore[arg-type]


def job_folder(jobs: Path, behaviour: str, *, run: str = "run-a", name: str = "0.0") -> Path:
    folder = jobs / run / name
    folder.mkdir(parents=True)
    (folder / "behaviour.json").write_text(json.dumps({"do": behaviour}))
    return folder


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


async def test_no_trainer_is_said_with_advice(jobs: Path) -> None:
    folder = job_folder(jobs, "succeed")
    with pytest.raises(TrainerAbsentError) as absent:
        await runner_on(jobs, absent_after_s=0.5).run_training_job(folder, job(), on_progress=lambda _: None)
    assert absent.value.code == "trainer-absent"
    assert "docker compose up" in absent.value.advice
    # A trainer that comes later does not begin what nobody waits for.
    assert (folder / "cancel").exists()


async def test_heartbeat_of_a_dead_trainer_is_none(jobs: Path) -> None:
    with overseer(jobs, program=BEHAVING):
        wait_until(lambda: is_trainer_alive(jobs), "no heartbeat")
    folder = job_folder(jobs, "succeed")
    with pytest.raises(TrainerAbsentError):
        await runner_on(jobs, absent_after_s=3.0).run_training_job(folder, job(), on_progress=lambda _: None)


async def test_trainer_that_dies_whole_is_waited_for_and_goes_on(jobs: Path) -> None:
    folder = job_folder(jobs, "hang-once")
    runner = runner_on(jobs)
    with overseer(jobs) as trainer:
        task = asyncio.create_task(runner.run_training_job(folder, job(), on_progress=lambda _: None))
        await asyncio.to_thread(wait_until, (folder / "progress.jsonl").exists, "no progress")
        await asyncio.to_thread(wait_until, lambda: "run-a/0.0" in told(jobs), "no heartbeat of the job")
        await asyncio.sleep(3)
        # As an engine does with a container that has no memory left: the overseer and all below it.
        os.kill(int((folder / "pids").read_text()), signal.SIGKILL)
        trainer.kill()
        trainer.wait()
    with overseer(jobs):
        result = await task
    assert result.records == 120
    assert (folder / "starts").read_text() == "xx"


def told(jobs: Path) -> tuple[str, ...]:
    beat = read_heartbeat(jobs)
    return () if beat is None else beat.jobs


async def test_work_of_an_agent_that_died_is_let_go_of_before_folders_are_looked_at(jobs: Path) -> None:
    folder = job_folder(jobs, "hang")
    write_job(folder, job())
    with overseer(jobs):
        await asyncio.to_thread(wait_until, (folder / "child.pid").exists, "the job did not begin")
        await asyncio.to_thread(wait_until, lambda: told(jobs) == ("run-a/0.0",), "no heartbeat of the job")
        await runner_on(jobs).end_orphans()
        assert told(jobs) == ()
        # It stays open for the round that takes it up, and is nobody's until then.
        assert (folder / "job.json").exists()
        (folder / "behaviour.json").write_text('{"do": "succeed"}')
        await runner_on(jobs).run_training_job(folder, job(), on_progress=lambda _: None)


async def test_jobs_of_two_runs_are_done_one_after_the_other(jobs: Path) -> None:
    folders = [job_folder(jobs, "succeed", run=run) for run in ("run-a", "run-b")]
    runner = runner_on(jobs)
    with overseer(jobs):
        results = await asyncio.gather(
            *(runner.run_training_job(folder, job(), on_progress=lambda _: None) for folder in folders)
        )
    assert [result.records for result in results] == [120, 120]
    assert len({(folder / "pids").read_text() for folder in folders}) == 1


async def test_inner_trainer_ends_with_its_run(jobs: Path) -> None:
    runner = runner_on(jobs)
    with overseer(jobs):
        first = job_folder(jobs, "succeed")
        await runner.run_training_job(first, job(), on_progress=lambda _: None)
        await runner.stop_run(jobs / "run-a")
        await asyncio.sleep(1.0)
        second = job_folder(jobs, "succeed", run="run-b")
        await runner.run_training_job(second, job(), on_progress=lambda _: None)
    assert (first / "pids").read_text() != (second / "pids").read_text()


async def test_trainer_that_floods_the_folder_with_ends_is_given_up(jobs: Path) -> None:
    folder = job_folder(jobs, "crash")
    (folder / "ends.jsonl").write_text('{"exit_code": 1}\n' * 1000 + "[" * 5000 + "\n")
    with pytest.raises(TrainerDiedError):
        await runner_on(jobs).run_training_job(folder, job(), on_progress=lambda _: None)
