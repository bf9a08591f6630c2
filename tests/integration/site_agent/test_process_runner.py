"""The process runner with a real subprocess: success, typed failure, crash, time-out, cancel, stop."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from site_agent.errors import JobFailedError, JobTimedOutError, TrainerDiedError
from site_agent.jobs.job_dir import DataFile, JobKind, JobSpec, ProgressLine
from site_agent.jobs.process import PID_FILE, ProcessRunner, ProcessRunnerOptions, end_orphans, kill_orphan

FAKE = Path(__file__).parent / "fake_trainer.py"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "https_proxy": "http://proxy", "HF_TOKEN": "secret"}


def runner_of(**options: float) -> ProcessRunner:
    command = (sys.executable, str(FAKE))
    changed = ProcessRunnerOptions(
        command=command, threads=1, environment=ENVIRONMENT, grace_s=5.0, restart_wait_s=0.01
    )
    return ProcessRunner(replace(changed, **options))


@pytest_asyncio.fixture
async def runner() -> AsyncIterator[ProcessRunner]:
    started = runner_of()
    yield started
    await started.stop()


def job_folder(spool: Path, behaviour: str, *, name: str = "0.0") -> Path:
    folder = spool / name
    folder.mkdir(parents=True)
    (folder / "behaviour.json").write_text(json.dumps({"do": behaviour}))
    return folder


def job(name: str = "0.0", *, timeout_s: float = 30.0) -> JobSpec:
    return JobSpec(job_id=name, kind=JobKind.INSPECT, data=DataFile(path="data.jsonl"), seed=7, timeout_s=timeout_s)


def ignore(_: ProgressLine) -> None:
    pass


async def test_job_that_succeeds_gives_its_result_and_progress(tmp_path: Path, runner: ProcessRunner) -> None:
    lines: list[ProgressLine] = []
    folder = job_folder(tmp_path, "succeed")
    result = await runner.run_training_job(folder, job(), on_progress=lines.append)
    assert result.records == 120
    assert [line.step for line in lines] == [0, 1, 2]


async def test_trainer_stays_warm_between_jobs(tmp_path: Path, runner: ProcessRunner) -> None:
    pids = []
    for name in ("0.0", "1.0"):
        await runner.run_training_job(job_folder(tmp_path, "succeed", name=name), job(name), on_progress=ignore)
        pids.append((tmp_path / PID_FILE).read_text())
    assert pids[0] == pids[1]


async def test_trainer_sees_no_proxy_and_no_token(tmp_path: Path, runner: ProcessRunner) -> None:
    folder = job_folder(tmp_path, "succeed")
    await runner.run_training_job(folder, job(), on_progress=ignore)
    seen = json.loads((folder / "environment.json").read_text())
    assert not {"https_proxy", "HF_TOKEN"} & seen.keys()
    assert (seen["HF_HUB_OFFLINE"], seen["OMP_NUM_THREADS"]) == ("1", "1")


async def test_job_that_fails_says_why(tmp_path: Path, runner: ProcessRunner) -> None:
    with pytest.raises(JobFailedError) as failed:
        await runner.run_training_job(job_folder(tmp_path, "fail"), job(), on_progress=ignore)
    assert (failed.value.failure_code, failed.value.advice) == ("data-malformed", "fix it")


async def test_trainer_that_gets_no_further_is_a_typed_failure(tmp_path: Path, runner: ProcessRunner) -> None:
    folder = job_folder(tmp_path, "crash")
    with pytest.raises(TrainerDiedError) as died:
        await runner.run_training_job(folder, job(), on_progress=ignore)
    assert died.value.facts["exit_code"] == 9
    assert "trainer.log" in died.value.advice
    # The first life got to its third step; three more got no further.
    assert (folder / "starts").read_text() == "x" * 4


async def test_trainer_that_is_killed_before_it_does_anything_is_told_of_memory(
    tmp_path: Path, runner: ProcessRunner
) -> None:
    folder = job_folder(tmp_path, "die-at-once")
    with pytest.raises(TrainerDiedError) as died:
        await runner.run_training_job(folder, job(), on_progress=ignore)
    assert died.value.facts["exit_code"] == -9
    assert "memory" in died.value.advice
    assert died.value.advice in str(died.value)
    assert (folder / "starts").read_text() == "x" * 3


async def test_trainer_that_dies_at_every_step_is_started_until_it_is_done(
    tmp_path: Path, runner: ProcessRunner
) -> None:
    folder, lines = job_folder(tmp_path, "one-step-a-life"), []
    result = await runner.run_training_job(folder, job(), on_progress=lines.append)
    assert result.records == 120
    assert (folder / "starts").read_text() == "x" * 9
    # Each line once, over all lives.
    assert [line.step for line in lines] == list(range(1, 10))


async def test_trainer_that_says_nothing_for_too_long_is_killed_and_started_again(tmp_path: Path) -> None:
    impatient = runner_of(idle_timeout_s=0.7)
    folder = job_folder(tmp_path, "hang-once")
    result = await impatient.run_training_job(folder, job(), on_progress=ignore)
    await impatient.stop()
    assert result.records == 120
    assert (folder / "starts").read_text() == "xx"


async def test_trainer_that_is_slow_and_alive_is_left_alone(tmp_path: Path) -> None:
    impatient = runner_of(idle_timeout_s=0.7)
    folder = job_folder(tmp_path, "beat")
    await impatient.run_training_job(folder, job(), on_progress=ignore)
    await impatient.stop()
    assert (folder / "starts").read_text() == "x"


async def test_job_that_was_closed_before_gives_its_result_without_a_trainer(
    tmp_path: Path, runner: ProcessRunner
) -> None:
    folder = job_folder(tmp_path, "succeed")
    first = await runner.run_training_job(folder, job(), on_progress=ignore)
    await runner.stop()
    again = await runner.run_training_job(folder, job(), on_progress=ignore)
    assert again == first
    assert (folder / "starts").read_text() == "x"
    assert not (tmp_path / PID_FILE).exists()


async def test_trainer_that_crashes_once_is_started_again_for_the_same_job(
    tmp_path: Path, runner: ProcessRunner
) -> None:
    folder = job_folder(tmp_path, "crash-once")
    result = await runner.run_training_job(folder, job(), on_progress=ignore)
    assert result.records == 120
    assert (folder / "starts").read_text() == "xx"


async def test_job_over_its_time_is_killed_with_its_children(tmp_path: Path, runner: ProcessRunner) -> None:
    folder = job_folder(tmp_path, "hang")
    with pytest.raises(JobTimedOutError):
        await runner.run_training_job(folder, job(timeout_s=3.0), on_progress=ignore)
    assert await ends(int((folder / "child.pid").read_text()))


async def test_job_cancelled_is_killed_and_the_next_one_runs(tmp_path: Path, runner: ProcessRunner) -> None:
    folder = job_folder(tmp_path, "hang")
    task = asyncio.create_task(runner.run_training_job(folder, job(), on_progress=ignore))
    child = int(await text_in(folder / "child.pid"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ends(child)
    (folder / "job.json").unlink()
    result = await runner.run_training_job(job_folder(tmp_path, "succeed", name="1.0"), job("1.0"), on_progress=ignore)
    assert result.records == 120


async def test_run_that_is_over_lets_its_trainer_end(tmp_path: Path, runner: ProcessRunner) -> None:
    await runner.run_training_job(job_folder(tmp_path, "succeed"), job(), on_progress=ignore)
    trainer = int((tmp_path / PID_FILE).read_text())
    await runner.stop_run(tmp_path)
    assert await ends(trainer)
    assert not (tmp_path / PID_FILE).exists()


async def test_trainer_of_a_dead_agent_is_gone_when_its_folder_is_taken_over(tmp_path: Path) -> None:
    spool = tmp_path / "run-a"
    spool.mkdir()
    orphan = await asyncio.create_subprocess_exec(
        sys.executable, str(FAKE), "serve", "--spool", str(spool), start_new_session=True
    )
    (spool / PID_FILE).write_text(str(orphan.pid))
    await text_in(spool / "ready.json")
    kill_orphan(tmp_path / "another spool")
    assert is_alive(orphan.pid)
    end_orphans(tmp_path)
    assert not is_alive(orphan.pid)
    assert await asyncio.wait_for(orphan.wait(), 10) == -9


async def test_process_that_is_no_trainer_is_left_alone(tmp_path: Path) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    (tmp_path / PID_FILE).write_text(str(other.pid))
    kill_orphan(tmp_path)
    assert is_alive(other.pid)
    other.kill()
    await other.wait()


async def text_in(path: Path) -> str:
    """What a process writes to a file, once it is there."""
    for _ in range(1000):
        if text := await asyncio.to_thread(lambda: path.read_text() if path.exists() else ""):
            return text
        await asyncio.sleep(0.02)
    message = f"{path.name} was not written"
    raise AssertionError(message)


def is_alive(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def ends(process_id: int) -> bool:
    """Whether a process that was killed is gone soon: the kernel delivers a signal when it pleases."""
    for _ in range(250):
        if not is_alive(process_id):
            return True
        await asyncio.sleep(0.02)
    return False
