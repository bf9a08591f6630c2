"""How a job is closed: its result, or a failure with a stable code and advice, written last.

Every error is translated here, once. Safety: of an error that nobody foresaw only the type is told, and only the
places of its traceback are logged, since its text may quote a record.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fl_protocol.errors import WardroundError
from fl_protocol.spec.faults import RunSpecFaultsError
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobFailure, JobResult, mend_progress, read_job
from site_agent.training.device import release_memory
from site_agent.training.errors import OutOfMemoryError, TrainerError, UnexpectedFailureError
from site_agent.training.fitting import is_out_of_memory
from site_agent.training.outcomes import write_outcome
from site_agent.training.progress import ProgressReporter, never_stops
from site_agent.training.recipe import CHECKPOINT_EVERY_S, perform_job
from site_agent.training.shelf import ModelShelf

_log = logging.getLogger(__name__)


def close_job(
    job_dir: Path,
    *,
    shelf: ModelShelf,
    should_stop: Callable[[], bool] = never_stops,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> JobResult | JobFailure:
    """Do the job of a folder and write ``result.json``, whatever happens.

    Of what an earlier trainer that died has left in the folder, the checkpoint is used, the progress is continued, and
    the rest is made again. A job that is closed has no checkpoint.

    Raises:
        TrainerStopped: the trainer is to end; the job stays open.
    """
    started = time.monotonic()
    outcome = outcome_of_job(job_dir, shelf=shelf, should_stop=should_stop, checkpoint_every_s=checkpoint_every_s)
    write_outcome(job_dir, outcome, started=started)
    if isinstance(outcome, JobFailure):
        release_memory()
    return outcome


def outcome_of_job(
    job_dir: Path,
    *,
    shelf: ModelShelf,
    should_stop: Callable[[], bool] = never_stops,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> JobResult | JobFailure:
    """Do the job of a folder and say how it ended; the job stays open.

    Raises:
        TrainerStopped: the trainer is to end.
    """
    (job_dir / PAYLOAD_FILE).unlink(missing_ok=True)
    mend_progress(job_dir)
    progress = ProgressReporter(job_dir, should_stop=should_stop)
    try:
        job = read_job(job_dir)
        return perform_job(job_dir, job, shelf=shelf, progress=progress, checkpoint_every_s=checkpoint_every_s)
    except Exception as error:  # noqa: BLE001 - the edge of the trainer: every failure becomes a typed result
        # A failed job may leave an adapter half trained, or memory that the next one needs.
        shelf.clear()
        return failure_from_error(error)


def failure_from_error(error: Exception) -> JobFailure:
    """The failure that an error is told as."""
    if isinstance(error, RunSpecFaultsError):
        return JobFailure(
            code=error.code,
            message="the run's specification is not valid: " + "; ".join(str(fault) for fault in error.faults),
            advice="The study lead must correct the specification and create the run anew.",
        )
    if not isinstance(error, WardroundError) and is_out_of_memory(error):
        error = OutOfMemoryError("the device has not enough memory for this job")
    if not isinstance(error, WardroundError):
        for frame in traceback.extract_tb(error.__traceback__):
            _log.error("unexpected %s at %s:%s in %s", type(error).__name__, frame.filename, frame.lineno, frame.name)
        error = UnexpectedFailureError("the trainer failed in a way that nobody foresaw", type=type(error).__name__)
    advice = error.advice if isinstance(error, TrainerError) else ""
    return JobFailure(code=error.code, message=error.message, advice=advice, facts=error.facts)
