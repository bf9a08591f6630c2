"""The seam to whatever runs a trainer: a folder in, a typed result or failure out. Knows no round and no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from fl_protocol.errors import Fact
from site_agent.errors import JobFailedError, JobTimedOutError
from site_agent.jobs.job_dir import JobFailure, JobResult, JobSpec, ProgressLine

ProgressListener = Callable[[ProgressLine], None]
"""Called with each new line of progress, in the event loop's thread; it must return at once."""


class JobRunner(Protocol):
    """Runs jobs. Every implementation passes the same contract suite."""

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """Run one job in a folder that holds all but ``job.json``, and wait for it.

        A folder in which an earlier start closed the very same job gives that result at once; one with its checkpoint
        goes on from there. Cancelling the call stops the job. Whoever calls deletes the folder.

        Raises:
            JobFailedError: the trainer said why.
            JobTimedOutError: ``job.timeout_s`` passed.
            TrainerAbsentError: there is no trainer.
            RunnerError: the trainer cannot be started as this runner starts trainers; the advice says what to do.
            TrainerDiedError: the trainer ended without closing the job, again and again, and got no further.
            JobDirectoryError: the trainer's result is not what the contract says.
        """
        ...

    async def end_orphans(self) -> None:
        """End what an agent that died left at work; called once, before the job folders are looked at.

        Otherwise such a trainer may write into a folder that is being filled anew.
        """
        ...

    async def stop_run(self, run_folder: Path) -> None:
        """The run is over: let go of whatever is kept warm for it. ``run_folder`` is the parent of its job folders."""
        ...

    async def stop(self) -> None:
        """Let go of everything."""
        ...


def succeeded(outcome: JobResult | JobFailure, job: JobSpec) -> JobResult:
    """The result of a job that is closed.

    Raises:
        JobFailedError: it failed; the trainer said why.
    """
    if isinstance(outcome, JobFailure):
        raise said_by_trainer(outcome, job_id=job.job_id)
    return outcome


def said_by_trainer(failure: JobFailure, **facts: Fact) -> JobFailedError:
    """A failure that stands in ``result.json``, as an error."""
    return JobFailedError(
        failure.message, failure_code=failure.code, advice=failure.advice, found=failure.facts, **facts
    )


@asynccontextmanager
async def job_time(job: JobSpec) -> AsyncIterator[None]:
    """Bound what is done inside by the job's time.

    Raises:
        JobTimedOutError: ``job.timeout_s`` passed.
    """
    try:
        async with asyncio.timeout(job.timeout_s):
            yield
    except TimeoutError as error:
        message = "the job did not end in its time; raise runner.timeout_s, or ask for fewer steps"
        raise JobTimedOutError(message, job_id=job.job_id, timeout_s=job.timeout_s) from error
