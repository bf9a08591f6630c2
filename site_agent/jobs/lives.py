"""The lives of a trainer over one job: how each ended, whether it got further, and when starting again is in vain.

The same for every runner: a trainer that dies, or that says nothing for too long, goes on from its checkpoint for as
long as each life gets further than all lives before it; a few in a row that do not end the job. How a life is started,
watched and ended is its runner's to say.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from site_agent.errors import TrainerDiedError
from site_agent.jobs.job_dir import (
    PROGRESS_FILE,
    JobFailure,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    read_result,
    write_job,
)
from site_agent.jobs.progress_file import read_progress_from
from site_agent.jobs.runner import ProgressListener

LOG_FILE = "trainer.log"

log = structlog.get_logger(__name__)

KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
"""How a process ends that the kernel, or an operator, killed; the second form is a container's."""

_LONGEST_RESTART_WAIT_S = 60.0
_ORDER = {ProgressState.LOADING: 0, ProgressState.EVALUATING: 1, ProgressState.TRAINING: 2}


class EndCause(StrEnum):
    """Why a trainer's life ended without closing its job."""

    EXITED = "exited"
    HUNG = "hung"
    RESTARTED = "restarted"
    """Its container was started again: what it died of, nobody told."""


_MEMORY_ADVICE = (
    "most often because memory ran out: ask for a smaller local.batch_size (with as much more local.accumulation) or "
    "local.max_length, or give this machine more memory."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnd:
    """A trainer ended without closing its job.

    Attributes:
        exit_code: None where it was not told.
        is_out_of_memory: the engine said that memory had run out, whatever the exit code is.
        told_where: where what it said last is found.
    """

    cause: EndCause
    exit_code: int | None = None
    is_out_of_memory: bool = False
    told_where: str = f"{LOG_FILE} in the run's job folder"

    @property
    def how(self) -> str:
        """How it ended, one of a closed list."""
        is_killed = self.cause is EndCause.EXITED and (self.is_out_of_memory or self.exit_code in KILLED)
        return "killed" if is_killed else self.cause.value

    @property
    def advice(self) -> str:
        """What the site's operator may do about it."""
        if self.cause is EndCause.HUNG:
            return "It said nothing for runner.idle_timeout_s; raise that where loading or one pass takes longer."
        if self.cause is EndCause.RESTARTED:
            return f"Its container was started again in the middle of the job, {_MEMORY_ADVICE}"
        if self.is_out_of_memory or self.exit_code in KILLED:
            return f"It was killed from outside, {_MEMORY_ADVICE}"
        return f"See {self.told_where}."


def _nobody(end: TrainerEnd) -> None:
    del end


_tell_end: ContextVar[Callable[[TrainerEnd], None]] = ContextVar("tell_end", default=_nobody)


@contextmanager
def telling_ends(tell: Callable[[TrainerEnd], None]) -> Iterator[None]:
    """Tell of each life of a trainer that ends in the jobs that are run inside, whichever runner runs them."""
    token = _tell_end.set(tell)
    try:
        yield
    finally:
        _tell_end.reset(token)


class ProgressFollower:
    """Reads a job's progress as it grows, over all lives of its trainer. Invariant: each line is passed on once."""

    def __init__(self, job_dir: Path, on_progress: ProgressListener) -> None:
        """Start before the first line."""
        self.job_dir = job_dir
        self._on_progress = on_progress
        self._offset = 0
        self._stamp: tuple[int, int] | None = None
        self._furthest: tuple[int, int] = (0, 0)
        self._furthest_before: tuple[int, int] = (0, 0)

    @property
    def step(self) -> int:
        """The furthest step that any life reached."""
        return self._furthest[1]

    async def look(self) -> bool:
        """Pass on what is new; whether the trainer gave a sign of life since the last look.

        Raises:
            JobFileInvalidError: what stands in the progress file's place is none.
        """
        stamp = stamp_of(self.job_dir / PROGRESS_FILE)
        if stamp is None or (stamp == self._stamp and stamp[0] <= self._offset):
            return False
        is_sign, self._stamp = stamp != self._stamp, stamp
        lines, self._offset = await asyncio.to_thread(read_progress_from, self.job_dir, self._offset)
        for line in lines:
            self._note(line)
        return is_sign or bool(lines)

    def take_advance(self) -> bool:
        """Whether the life that just ended got further than all before it. Loading is not getting anywhere."""
        has_advanced = self._furthest > self._furthest_before
        self._furthest_before = self._furthest
        return has_advanced

    def _note(self, line: ProgressLine) -> None:
        self._furthest = max(self._furthest, (_ORDER[line.state], line.step if _ORDER[line.state] else 0))
        self._on_progress(line)


class Lives:
    """Counts the lives of one job's trainers that were in vain."""

    def __init__(self, follower: ProgressFollower, job_id: str, *, n_in_vain_allowed: int) -> None:
        """Begin with the first life."""
        self._follower = follower
        self._job_id = job_id
        self._n_allowed = n_in_vain_allowed
        self._n_in_vain = 0

    def note(self, end: TrainerEnd) -> None:
        """Note that a life ended.

        Raises:
            TrainerDiedError: too many in a row got no further.
        """
        self._n_in_vain = 0 if self._follower.take_advance() else self._n_in_vain + 1
        _tell_end.get()(end)
        log.warning(
            "trainer_died",
            job_id=self._job_id,
            exit_code=end.exit_code,
            cause=end.cause.value,
            step=self._follower.step,
            n_in_vain=self._n_in_vain,
            advice=end.advice,
        )
        if self._n_in_vain >= self._n_allowed:
            message = f"the trainer died {self._n_in_vain} times without getting further"
            raise TrainerDiedError(message, advice=end.advice, job_id=self._job_id, exit_code=end.exit_code)

    def wait_s(self, first_s: float) -> float:
        """How long to wait before the next life: ``first_s``, doubled with every life in vain."""
        return min(first_s * float(2**self._n_in_vain), _LONGEST_RESTART_WAIT_S)


async def run_lives(
    job_dir: Path,
    job: JobSpec,
    live: Callable[[ProgressFollower], Awaitable[JobResult | JobFailure | TrainerEnd]],
    *,
    on_progress: ProgressListener,
    n_in_vain_allowed: int,
    restart_wait_s: float | None,
) -> JobResult | JobFailure:
    """Run a job to its end, over as many lives of its trainer as get further.

    Args:
        job_dir: holds all but ``job.json``; where an earlier start closed the very same job, its outcome is given.
        job: written into it.
        live: one life, from its start to its end; the job's outcome, or how the life ended without one.
        on_progress: called with each new line.
        n_in_vain_allowed: lives in a row that get no further.
        restart_wait_s: before the second life, and doubled with every life in vain; None where whoever starts the
            trainers waits.

    Raises:
        TrainerDiedError: too many lives in a row got no further.
    """
    await asyncio.to_thread(write_job, job_dir, job)
    closed = await asyncio.to_thread(read_result, job_dir)
    if closed is not None:
        return closed
    follower = ProgressFollower(job_dir, on_progress)
    lives = Lives(follower, job.job_id, n_in_vain_allowed=n_in_vain_allowed)
    while True:
        end = await live(follower)
        if not isinstance(end, TrainerEnd):
            return end
        lives.note(end)
        if restart_wait_s is not None:
            await asyncio.sleep(lives.wait_s(restart_wait_s))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change of what stands there, without following a link; None where nothing does."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns
