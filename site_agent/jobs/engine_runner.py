"""One trainer for each life of a job, on whatever engine runs containers: the loop that those engines share.

An engine starts a container, tells how it stands, and removes it; what a job is, and when its trainer is hung or in
vain, is decided here. A container ends with its job; one that dies before is followed by another, which goes on from
the checkpoint. Knows no engine.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from site_agent.errors import RunnerError
from site_agent.jobs.container_plan import ContainerLimits
from site_agent.jobs.held_folder import held_folder, unsafe_errors
from site_agent.jobs.job_dir import JobFailure, JobResult, JobSpec, read_result
from site_agent.jobs.lives import EndCause, ProgressFollower, TrainerEnd, run_lives
from site_agent.jobs.runner import ProgressListener, job_time, succeeded
from site_agent.jobs.spool_files import JobNames, names_of

log = structlog.get_logger(__name__)

Started = TypeVar("Started")
"""How an engine calls a container that it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRunnerOptions:
    """What is the same whichever engine runs the containers.

    Attributes:
        jobs_dir: the jobs folder, as this agent sees it.
        image: the trainer's, by digest.
        words: after the job's folder.
        n_lives_in_vain: how many trainers may die in a row without getting further than those before them.
        restart_wait_s: how long to wait before a trainer is started again; doubled with every life in vain.
        idle_timeout_s: how long a trainer may say nothing.
        look_every_s: how often the engine is asked how a container stands.
    """

    jobs_dir: Path
    image: str
    limits: ContainerLimits = field(default_factory=ContainerLimits)
    words: tuple[str, ...] = ()
    n_lives_in_vain: int = 3
    restart_wait_s: float = 1.0
    idle_timeout_s: float = 1800.0
    look_every_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an engine says of a container.

    Attributes:
        is_started: whether it has begun, or did.
        end: how it ended; None while it has not.
    """

    is_started: bool
    end: TrainerEnd | None = None


class ContainerEngine(Protocol[Started]):
    """Starts, watches and ends containers. Every call blocks, and raises ``RunnerError`` where the engine refuses."""

    def look(self) -> str:
        """Whether jobs could be run now, and start nothing; what was found, in words."""
        ...

    def start(self, names: JobNames, job: JobSpec) -> Started:
        """Ask for the container of one life of a job. What was made of a call that fails is gone when it raises."""
        ...

    def standing_of(self, started: Started) -> Standing:
        """How it stands."""
        ...

    def check_wait(self, waited_s: float) -> None:
        """Raise where a container that has not begun has waited for too long; the advice says for what."""
        ...

    def end(self, started: Started, names: JobNames) -> None:
        """End and remove it, however it stands; the job's folder is free when this returns."""
        ...

    def remove_orphans(self) -> None:
        """Remove the containers of rounds that carry this jobs folder's label."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...


class EngineRunner(Generic[Started]):
    """Runs each job in containers of its own. Invariant: no container outlives the call that asked for it."""

    def __init__(self, engine: ContainerEngine[Started], options: EngineRunnerOptions) -> None:
        """Nothing is asked of the engine before the first job."""
        self._engine = engine
        self._options = options
        self._locks: dict[str, asyncio.Lock] = {}

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """See ``JobRunner``."""
        names = names_of(self._options.jobs_dir, job_dir)
        async with self._locks.setdefault(names[0], asyncio.Lock()):
            with unsafe_errors(), held_folder(self._options.jobs_dir, *names) as held:
                async with job_time(job):
                    result = await run_lives(
                        held,
                        job,
                        lambda follower: self._live(names, job, follower),
                        on_progress=on_progress,
                        n_in_vain_allowed=self._options.n_lives_in_vain,
                        restart_wait_s=self._options.restart_wait_s,
                    )
        return succeeded(result, job)

    async def end_orphans(self) -> None:
        """See ``JobRunner``: containers of rounds that carry this jobs folder's label are removed."""
        try:
            await asyncio.to_thread(self._engine.remove_orphans)
        except RunnerError as error:
            # The agent has more to do than to train; the next job says it again.
            log.warning("engine_not_asked", code=error.code, cause=error.message)

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``: no container is kept for a run."""

    async def stop(self) -> None:
        """See ``JobRunner``."""
        await asyncio.to_thread(self._engine.close)

    def look(self) -> str:
        """Ask the engine whether jobs could be run now, and start nothing; what was found, in words. Blocks on it.

        Raises:
            RunnerError: they could not; the advice says what to do.
        """
        return self._engine.look()

    async def _live(
        self, names: JobNames, job: JobSpec, follower: ProgressFollower
    ) -> JobResult | JobFailure | TrainerEnd:
        """One container, from its start to its removal, whatever happens in between."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._engine.start, names, job))
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on; what it makes must not stay.
            with suppress(RunnerError):
                await asyncio.to_thread(self._engine.end, await starting, names)
            raise
        try:
            return await self._wait_for_end(started, follower)
        finally:
            await asyncio.to_thread(self._engine.end, started, names)

    async def _wait_for_end(self, started: Started, follower: ProgressFollower) -> JobResult | JobFailure | TrainerEnd:
        now = asyncio.get_running_loop().time
        alive_at = made_at = now()
        has_begun = False
        while True:
            standing = await asyncio.to_thread(self._engine.standing_of, started)
            if await follower.look():
                alive_at, has_begun = now(), True
            if standing.end is not None:
                # Only now: what it says last, it says before it ends.
                await follower.look()
                result = await asyncio.to_thread(read_result, follower.job_dir)
                return result if result is not None else standing.end
            if standing.is_started and not has_begun:
                alive_at, has_begun = now(), True
            if not has_begun:
                self._engine.check_wait(now() - made_at)
            elif now() - alive_at > self._options.idle_timeout_s:
                return TrainerEnd(cause=EndCause.HUNG)
            await asyncio.sleep(self._options.look_every_s)
