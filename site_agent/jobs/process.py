"""The ``process`` runner: one warm trainer a run, as a subprocess of the agent, fed through its spool folder.

Importing the numeric libraries costs ten seconds, so the trainer stays up between rounds (decision 25). It is started
in a process group of its own, and the whole group is killed on cancel, on a time-out and when the agent stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from site_agent.errors import JobFailedError, JobTimedOutError, TrainerDiedError
from site_agent.jobs.job_dir import (
    PROGRESS_FILE,
    READY_FILE,
    RESULT_FILE,
    STOP_FILE,
    JobFailure,
    JobResult,
    JobSpec,
    read_progress,
    read_result,
    write_job,
)
from site_agent.jobs.runner import ProgressListener
from site_agent.jobs.trainer_environment import trainer_environment

LOG_FILE = "trainer.log"
PID_FILE = "trainer.pid"

_LOOK_EVERY_S = 0.1
_PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRunnerOptions:
    """How trainers are started and stopped.

    Attributes:
        command: the trainer program, without its verb.
        threads: threads of the numeric libraries; None leaves it to them.
        environment: the agent's own, of which the trainer gets a part.
        n_restarts: how often a trainer that died is started again for the same job.
        grace_s: how long a trainer may take to end when asked.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "site_agent.training")
    threads: int | None = None
    environment: Mapping[str, str]
    n_restarts: int = 1
    grace_s: float = 5.0


class ProcessRunner:
    """Runs jobs in warm subprocesses. Invariant: one trainer a run at most, and one job in it at a time."""

    def __init__(self, options: ProcessRunnerOptions) -> None:
        """Nothing is started before the first job."""
        self._options = options
        self._trainers: dict[Path, WarmTrainer] = {}
        self._locks: dict[Path, asyncio.Lock] = {}

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """See ``JobRunner``."""
        spool = job_dir.parent
        async with self._locks.setdefault(spool, asyncio.Lock()):
            trainer = self._trainers.setdefault(spool, WarmTrainer(spool, self._options))
            try:
                async with asyncio.timeout(job.timeout_s):
                    result = await self._run(trainer, job_dir, job, on_progress)
            except TimeoutError as error:
                await trainer.kill()
                message = "the job did not end in its time; raise runner.timeout_s, or ask for fewer steps"
                raise JobTimedOutError(message, job_id=job.job_id, timeout_s=job.timeout_s) from error
            except asyncio.CancelledError:
                await trainer.kill()
                raise
        if isinstance(result, JobFailure):
            raise JobFailedError(result.message, failure_code=result.code, advice=result.advice, job_id=job.job_id)
        return result

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``."""
        trainer = self._trainers.pop(run_folder, None)
        if trainer is not None:
            await trainer.stop()

    async def stop(self) -> None:
        """See ``JobRunner``."""
        for run_folder in tuple(self._trainers):
            await self.stop_run(run_folder)

    async def _run(
        self, trainer: WarmTrainer, job_dir: Path, job: JobSpec, on_progress: ProgressListener
    ) -> JobResult | JobFailure:
        await asyncio.to_thread(write_job, job_dir, job)
        for attempts_left in range(self._options.n_restarts, -1, -1):
            await trainer.ensure_started()
            result = await _wait_for_result(trainer, job_dir, on_progress)
            if result is not None:
                return result
            exit_code = trainer.exit_code
            await trainer.kill()
            if attempts_left == 0:
                message = f"the trainer ended without closing its job; see {LOG_FILE} in the run's job folder"
                raise TrainerDiedError(message, job_id=job.job_id, exit_code=exit_code)
        message = "unreachable: the last attempt returns or raises"
        raise AssertionError(message)


async def _wait_for_result(
    trainer: WarmTrainer, job_dir: Path, on_progress: ProgressListener
) -> JobResult | JobFailure | None:
    """The job's result; None when the trainer's process ended without one."""
    n_seen, size_seen = 0, 0
    while True:
        # The order matters: a trainer may close its job and end right after.
        has_ended = trainer.exit_code is not None
        size = _size_of(job_dir / PROGRESS_FILE)
        if size != size_seen:
            size_seen = size
            lines = await asyncio.to_thread(read_progress, job_dir)
            for line in lines[n_seen:]:
                on_progress(line)
            n_seen = len(lines)
        if (job_dir / RESULT_FILE).exists():
            return await asyncio.to_thread(read_result, job_dir)
        if has_ended:
            return None
        await asyncio.sleep(_LOOK_EVERY_S)


class WarmTrainer:
    """One trainer process on one spool folder."""

    def __init__(self, spool: Path, options: ProcessRunnerOptions) -> None:
        """Nothing is started yet."""
        self._spool = spool
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit status; None while it runs, and before it was started."""
        return None if self._process is None else self._process.returncode

    async def ensure_started(self) -> None:
        """Start the trainer unless it runs."""
        if self._process is not None and self._process.returncode is None:
            return
        kill_orphan(self._spool)
        for stale in (STOP_FILE, READY_FILE):
            (self._spool / stale).unlink(missing_ok=True)
        log = os.open(self._spool / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _PRIVATE_FILE)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments(),
                # An open pipe that the agent never writes to: it closes when the agent dies, however that happens.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=trainer_environment(self._options.environment, threads=self._options.threads),
                start_new_session=True,
            )
        finally:
            os.close(log)
        (self._spool / PID_FILE).write_text(str(self._process.pid))

    async def kill(self) -> None:
        """End the trainer and everything it started, at once."""
        process = self._process
        if process is None:
            return
        kill_group(process.pid)
        await process.wait()
        self._forget(process)

    async def stop(self) -> None:
        """Ask the trainer to end; kill its group when it does not, and whatever it left behind when it does."""
        process = self._process
        if process is None:
            return
        (self._spool / STOP_FILE).touch()
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._options.grace_s)
        await self.kill()

    def _forget(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        (self._spool / PID_FILE).unlink(missing_ok=True)
        self._process = None

    def _arguments(self) -> Sequence[str]:
        return (*self._options.command, "serve", "--spool", str(self._spool))


def kill_group(process_id: int) -> None:
    """Kill a process group; nothing happens when there is none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)


def kill_orphan(spool: Path) -> None:
    """Kill the trainer that an agent which died left on this spool, if it still works there.

    The process is recognised by its command line, since its number may by now be another program's.
    """
    try:
        process_id = int((spool / PID_FILE).read_text())
        command_line = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if str(spool).encode() in command_line:
        kill_group(process_id)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
