"""The ``process`` runner: one warm trainer a run, as a subprocess of the agent, fed through its spool folder.

Importing the numeric libraries costs ten seconds, so the trainer stays up between rounds (decision 25). It is started
in a process group of its own, and the whole group is killed on cancel, on a time-out and when the agent stops.

A trainer that dies, or that says nothing for too long, is started again and goes on from its checkpoint, for as long as
each life gets further than all lives before it; a few in a row that do not end the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from site_agent.errors import JobTimedOutError
from site_agent.jobs.job_dir import READY_FILE, STOP_FILE, JobFailure, JobResult, JobSpec, read_result
from site_agent.jobs.lives import LOG_FILE, EndCause, ProgressFollower, TrainerEnd, run_lives
from site_agent.jobs.runner import ProgressListener, job_time, succeeded
from site_agent.jobs.trainer_environment import trainer_environment

_MAX_LOG_BYTES = 4 << 20
PID_FILE = "trainer.pid"

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.1
_ORPHAN_ENDS_WITHIN_S = 10.0
_PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRunnerOptions:
    """How trainers are started and stopped.

    Attributes:
        command: the trainer program, without its verb.
        threads: threads of the numeric libraries in each process; None leaves it to them.
        processes: how many processes do a job together; None for one a GPU.
        environment: the agent's own, of which the trainer gets a part.
        jobs_dir: where trainers of an agent that died may be left.
        n_lives_in_vain: how many trainers may die in a row without getting further than those before them.
        restart_wait_s: how long to wait before a trainer is started again; doubled with every life in vain.
        idle_timeout_s: how long a trainer may say nothing. It says something with every forward and backward pass, so
            that only loading a model and a pass on a very slow machine take long.
        checkpoint_every_s: the trainer's shortest time between two checkpoints; None is its default.
        grace_s: how long a trainer may take to end when asked.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "site_agent.training")
    threads: int | None = None
    processes: int | None = 1
    environment: Mapping[str, str]
    jobs_dir: Path | None = None
    n_lives_in_vain: int = 3
    restart_wait_s: float = 1.0
    idle_timeout_s: float = 1800.0
    checkpoint_every_s: float | None = None
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
                async with job_time(job):
                    result = await run_lives(
                        job_dir,
                        job,
                        lambda follower: self._live(trainer, follower),
                        on_progress=on_progress,
                        n_in_vain_allowed=self._options.n_lives_in_vain,
                        restart_wait_s=self._options.restart_wait_s,
                    )
            except (JobTimedOutError, asyncio.CancelledError):
                await trainer.kill()
                raise
        return succeeded(result, job)

    async def end_orphans(self) -> None:
        """See ``JobRunner``."""
        if self._options.jobs_dir is not None:
            await asyncio.to_thread(end_orphans, self._options.jobs_dir)

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``."""
        trainer = self._trainers.pop(run_folder, None)
        if trainer is not None:
            await trainer.stop()

    async def stop(self) -> None:
        """See ``JobRunner``."""
        for run_folder in tuple(self._trainers):
            await self.stop_run(run_folder)

    async def _live(self, trainer: WarmTrainer, follower: ProgressFollower) -> JobResult | JobFailure | TrainerEnd:
        await trainer.ensure_started()
        end = await _wait_for_end(trainer, follower, idle_timeout_s=self._options.idle_timeout_s)
        if isinstance(end, TrainerEnd):
            await trainer.kill()
        return end


def _bound_log(path: Path) -> None:
    """Put a long log aside before a trainer is started; the one that was put aside before goes."""
    try:
        if path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return


async def _wait_for_end(
    trainer: WarmTrainer, follower: ProgressFollower, *, idle_timeout_s: float
) -> JobResult | JobFailure | TrainerEnd:
    """The job's result, or how its trainer ended without one."""
    now = asyncio.get_running_loop().time
    alive_at = now()
    while True:
        # The order matters: a trainer may close its job and end right after.
        exit_code = trainer.exit_code
        if await follower.look():
            alive_at = now()
        result = await asyncio.to_thread(read_result, follower.job_dir)
        if result is not None or exit_code is not None:
            # Once more: what it said last may have come between the look and the result.
            await follower.look()
            return result or TrainerEnd(cause=EndCause.EXITED, exit_code=exit_code)
        if now() - alive_at > idle_timeout_s:
            return TrainerEnd(cause=EndCause.HUNG)
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
        await asyncio.to_thread(kill_orphan, self._spool)
        for stale in (STOP_FILE, READY_FILE):
            (self._spool / stale).unlink(missing_ok=True)
        _bound_log(self._spool / LOG_FILE)
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
            async with asyncio.timeout(self._options.grace_s):
                await process.wait()
        await self.kill()

    def _forget(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        (self._spool / PID_FILE).unlink(missing_ok=True)
        self._process = None

    def _arguments(self) -> Sequence[str]:
        every_s = self._options.checkpoint_every_s
        checkpoints = () if every_s is None else ("--checkpoint-every-s", str(every_s))
        n_processes = self._options.processes
        processes = () if n_processes == 1 else ("--processes", "auto" if n_processes is None else str(n_processes))
        return (*self._options.command, "serve", "--spool", str(self._spool), *checkpoints, *processes)


def kill_group(process_id: int) -> None:
    """Kill a process group; nothing happens when there is none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)


def end_orphans(jobs_dir: Path) -> None:
    """Kill every trainer that an agent which died left at work. Blocks; call it before the job folders are looked at.

    Otherwise such a trainer may write into a folder that is being filled anew.
    """
    for pid_file in jobs_dir.glob(f"*/{PID_FILE}"):
        kill_orphan(pid_file.parent)


def kill_orphan(spool: Path) -> None:
    """Kill the trainer that an agent which died left on this spool, if it still works there, and wait until it is gone.

    The process is recognised by its command line, since its number may by now be another program's.
    """
    try:
        process_id = int((spool / PID_FILE).read_text())
        command_line = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if str(spool).encode() not in command_line:
        return
    kill_group(process_id)
    deadline = time.monotonic() + _ORPHAN_ENDS_WITHIN_S
    while not _is_gone(process_id):
        if time.monotonic() > deadline:
            log.warning("orphan_not_ended", process_id=process_id)
            return
        time.sleep(_LOOK_EVERY_S / 10)


def _is_gone(process_id: int) -> bool:
    """Whether no thread of a killed process runs any more. Nobody may have waited for it: a zombie is gone as well."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        n_threads = len(list(Path(f"/proc/{process_id}/task").iterdir()))
    except (OSError, IndexError):
        return True
    return state in {"Z", "X"} and n_threads <= 1
