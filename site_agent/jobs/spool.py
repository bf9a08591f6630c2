"""The ``spool`` runner: hands jobs, by the jobs folder, to a trainer that runs in a container without network.

The agent starts nothing and needs no engine's socket: it fills a job's folder, and a trainer that shares nothing with
it but the jobs folder (``python -m site_agent.training serve-spools``) does the job. A trainer that dies is started
again by whoever started it, and goes on from the job's checkpoint.

Safety: the trainer is taken for owned by an attacker. Every file here is read by ``held_folder``'s rules.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from site_agent.errors import TrainerAbsentError
from site_agent.jobs.documents import write_file
from site_agent.jobs.held_folder import JobsFolderUnsafeError, held_folder, remove_without_following, unsafe_errors
from site_agent.jobs.job_dir import (
    JOB_FILE,
    RESULT_FILE,
    STOP_FILE,
    JobFailure,
    JobResult,
    JobSpec,
    read_result,
)
from site_agent.jobs.lives import EndCause, ProgressFollower, TrainerEnd, run_lives, stamp_of
from site_agent.jobs.runner import ProgressListener, job_time, succeeded
from site_agent.jobs.spool_files import (
    CANCEL_FILE,
    HEARTBEAT_FILE,
    INSPECTIONS_FOLDER,
    RESTART_FILE,
    Heartbeat,
    JobNames,
    is_of_a_round,
    is_trainer_alive,
    names_of,
    read_ends_from,
    read_heartbeat,
)

log = structlog.get_logger(__name__)

ABSENT_ADVICE = (
    "Start the trainer's container ('docker compose up -d trainer', or the wardround-trainer service) on the same jobs "
    "folder; 'python -m site_agent.training doctor --live --jobs DIR' inside it says whether it is well."
)

_LOOK_EVERY_S = 0.2
_STOPS_WITHIN_S = 8.0
"""Shorter than what a container engine gives an agent that is to stop."""
_FORGOTTEN_AFTER_S = 86_400.0
_NOT_OURS = (FileNotFoundError, PermissionError, JobsFolderUnsafeError)
"""There is no such folder; or a trainer, or nobody, knows what stands in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolRunnerOptions:
    """How jobs are handed over.

    Attributes:
        jobs_dir: the folder that agent and trainer share.
        n_lives_in_vain: how many trainers may die in a row without getting further than those before them.
        idle_timeout_s: how long a trainer may say nothing while it is at the job.
        absent_after_s: how long there may be no heartbeat before a job is given up.
        stops_within_s: how long a trainer may take to let go of a job.
    """

    jobs_dir: Path
    n_lives_in_vain: int = 3
    idle_timeout_s: float = 1800.0
    absent_after_s: float = 120.0
    stops_within_s: float = _STOPS_WITHIN_S


class SpoolRunner:
    """Runs jobs in a trainer that serves the jobs folder. Invariant: a job that is given up is let go of first."""

    def __init__(self, options: SpoolRunnerOptions) -> None:
        """Nothing is looked at before the first job."""
        self._options = options
        self._locks: dict[str, asyncio.Lock] = {}

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """See ``JobRunner``."""
        names = names_of(self._options.jobs_dir, job_dir)
        async with self._locks.setdefault(names[0], asyncio.Lock()):
            # The folder is held for as long as the job takes: what a trainer puts in its place meanwhile is not it.
            with unsafe_errors(), held_folder(self._options.jobs_dir, *names) as held:
                try:
                    async with job_time(job):
                        result = await self._run(held, names, job, on_progress)
                except BaseException:
                    # Cancelled, or given up: either way the trainer must not go on with it.
                    await self._give_up(held, "/".join(names))
                    raise
        return succeeded(result, job)

    async def end_orphans(self) -> None:
        """See ``JobRunner``: the trainer is asked to let go of what an agent that died had given it."""
        at_work = await asyncio.to_thread(self._cancel_open_jobs)
        for name in at_work:
            await self._wait_until_let_go(name)

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``: what is kept warm for the run may end."""
        await asyncio.to_thread(self._write_stop, run_folder.name)

    async def stop(self) -> None:
        """See ``JobRunner``: the trainer is not this agent's to stop."""

    async def _run(
        self, job_dir: Path, names: JobNames, job: JobSpec, on_progress: ProgressListener
    ) -> JobResult | JobFailure:
        await asyncio.to_thread(self._clear_signs, job_dir, names[0])
        watch = _TrainerWatch(self._options.jobs_dir, absent_after_s=self._options.absent_after_s)
        waiting = _Waiting("/".join(names), job_dir, watch, idle_timeout_s=self._options.idle_timeout_s)
        return await run_lives(
            job_dir,
            job,
            waiting.for_end,
            on_progress=on_progress,
            n_in_vain_allowed=self._options.n_lives_in_vain,
            # The trainer itself waits before it starts another.
            restart_wait_s=None,
        )

    def _clear_signs(self, job_dir: Path, run: str) -> None:
        """Take away what an earlier start of the job told the trainer."""
        remove_without_following(job_dir / CANCEL_FILE)
        remove_without_following(job_dir / RESTART_FILE)
        with held_folder(self._options.jobs_dir, run) as spool:
            remove_without_following(spool / STOP_FILE)

    async def _give_up(self, job_dir: Path, name: str) -> None:
        """Have the trainer let go of a job, so that its folder may be deleted or filled anew."""
        try:
            await asyncio.to_thread(write_file, job_dir / CANCEL_FILE, b"")
        except OSError as error:
            log.warning("job_not_cancelled", job=name, reason=error.strerror)
            return
        if await asyncio.to_thread(is_trainer_alive, self._options.jobs_dir):
            await self._wait_until_let_go(name)

    async def _wait_until_let_go(self, name: str) -> None:
        watch = _TrainerWatch(self._options.jobs_dir, absent_after_s=self._options.stops_within_s)
        try:
            async with asyncio.timeout(self._options.stops_within_s):
                while (beat := await watch.look()) is None or name in beat.jobs:  # noqa: ASYNC110 - another process's file
                    await asyncio.sleep(_LOOK_EVERY_S)
        except (TimeoutError, TrainerAbsentError):
            # Either nobody is there to go on with it, or the trainer does not keep the contract: its next words are
            # read in a folder that is this job's no more.
            log.warning("job_not_let_go", job=name)

    def _cancel_open_jobs(self) -> tuple[str, ...]:
        beat = read_heartbeat(self._options.jobs_dir)
        found: list[str] = []
        for names in open_jobs_below(self._options.jobs_dir):
            with suppress(OSError, JobsFolderUnsafeError), held_folder(self._options.jobs_dir, *names) as folder:
                write_file(folder / CANCEL_FILE, b"")
                found.append("/".join(names))
        self._forget_old_inspections()
        # Only what it says that it is at: where it says nothing, there is nothing to wait for.
        return tuple(name for name in found if beat is not None and name in beat.jobs)

    def _forget_old_inspections(self) -> None:
        with suppress(*_NOT_OURS), held_folder(self._options.jobs_dir, INSPECTIONS_FOLDER) as folder:
            for path in folder.iterdir():
                with suppress(OSError):
                    if time.time() - path.lstat().st_mtime > _FORGOTTEN_AFTER_S:
                        remove_without_following(path)

    def _write_stop(self, run: str) -> None:
        with suppress(*_NOT_OURS), held_folder(self._options.jobs_dir, run) as spool:
            write_file(spool / STOP_FILE, b"")


def open_jobs_below(jobs_dir: Path) -> list[JobNames]:
    """The rounds' jobs that are opened and not closed, without following a link. Blocks on the disk."""
    found: list[JobNames] = []
    if not jobs_dir.exists():
        return found
    for run in sorted(entry.name for entry in jobs_dir.iterdir() if is_of_a_round(entry.name)):
        with suppress(OSError, JobsFolderUnsafeError), held_folder(jobs_dir, run) as spool:
            for entry in spool.iterdir():
                is_folder = entry.is_dir() and not entry.is_symlink()
                if is_folder and (entry / JOB_FILE).exists() and not (entry / RESULT_FILE).exists():
                    found.append((run, entry.name))
    return found


class _TrainerWatch:
    """Follows the heartbeat by this process's own clock: the trainer's may be another machine's."""

    def __init__(self, jobs_dir: Path, *, absent_after_s: float) -> None:
        self._jobs_dir = jobs_dir
        self._absent_after_s = absent_after_s
        self._stamp: tuple[int, int] | None = None
        self._beat: Heartbeat | None = None
        self._beat_at = time.monotonic()
        self._n_changes = 0

    async def look(self) -> Heartbeat | None:
        """The newest heartbeat; None while none was seen to change: what stands there may be a dead trainer's.

        Raises:
            TrainerAbsentError: there was none for too long.
        """
        stamp, now = stamp_of(self._jobs_dir / HEARTBEAT_FILE), time.monotonic()
        if stamp is not None and stamp != self._stamp:
            beat = await asyncio.to_thread(read_heartbeat, self._jobs_dir)
            if beat is not None and beat != self._beat:
                self._n_changes += self._stamp is not None
                self._stamp, self._beat, self._beat_at = stamp, beat, now
        if now - self._beat_at > self._absent_after_s:
            message = "no trainer serves the jobs folder"
            raise TrainerAbsentError(message, advice=ABSENT_ADVICE, silent_s=round(now - self._beat_at))
        return self._beat if self._n_changes else None


class _Waiting:
    """Waits for the end of a job, or of a life of its trainer."""

    def __init__(self, name: str, job_dir: Path, watch: _TrainerWatch, *, idle_timeout_s: float) -> None:
        self._name = name
        self._job_dir = job_dir
        self._watch = watch
        self._idle_timeout_s = idle_timeout_s
        self._life_at_work: str | None = None
        self._ends_offset = 0
        self._ends: list[int] = []

    async def for_end(self, follower: ProgressFollower) -> JobResult | JobFailure | TrainerEnd:
        """The job's result, or how its trainer ended without one; one that hangs is asked to start again."""
        alive_at = time.monotonic()
        while True:
            beat = await self._watch.look()
            is_alive = await follower.look()
            result = await asyncio.to_thread(read_result, self._job_dir)
            if result is not None:
                # Once more: what it said last may have come between the look and the result.
                await follower.look()
                return result
            end = await self._end(beat)
            if end is not None:
                return end
            # A job that waits for its turn says nothing, and is not hung.
            if is_alive or self._life_at_work is None:
                alive_at = time.monotonic()
            if time.monotonic() - alive_at > self._idle_timeout_s:
                self._life_at_work = None
                await asyncio.to_thread(write_file, self._job_dir / RESTART_FILE, b"")
                return TrainerEnd(cause=EndCause.HUNG)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _end(self, beat: Heartbeat | None) -> TrainerEnd | None:
        codes, self._ends_offset = await asyncio.to_thread(read_ends_from, self._job_dir, self._ends_offset)
        self._ends += codes
        if self._ends:
            self._life_at_work = None
            told_where = "the trainer's own log ('docker compose logs trainer')"
            return TrainerEnd(cause=EndCause.EXITED, exit_code=self._ends.pop(0), told_where=told_where)
        if beat is None:
            return None
        was, self._life_at_work = self._life_at_work, beat.life if self._name in beat.jobs else self._life_at_work
        if was is not None and beat.life != was:
            self._life_at_work = beat.life if self._name in beat.jobs else None
            return TrainerEnd(cause=EndCause.RESTARTED)
        if self._name not in beat.jobs:
            self._life_at_work = None
        return None
