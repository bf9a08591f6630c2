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

import torch

from fl_protocol.errors import WardroundError
from fl_protocol.spec.faults import RunSpecFaultsError
from site_agent.jobs.job_dir import PAYLOAD_FILE, PROGRESS_FILE, JobFailure, JobResult, read_job, write_result
from site_agent.training.device import release_memory
from site_agent.training.errors import OutOfMemoryError, TrainerError, UnexpectedFailureError
from site_agent.training.model import ModelShelf
from site_agent.training.progress import ProgressReporter, never_stops
from site_agent.training.recipe import perform_job

_log = logging.getLogger(__name__)

_MEMORY_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


def close_job(
    job_dir: Path, *, shelf: ModelShelf, should_stop: Callable[[], bool] = never_stops
) -> JobResult | JobFailure:
    """Do the job of a folder and write ``result.json``, whatever happens.

    What an earlier trainer that died has left in the folder is removed first.

    Raises:
        TrainerStopped: the trainer is to end; the job stays open.
    """
    started = time.monotonic()
    for stale in (PAYLOAD_FILE, PROGRESS_FILE):
        (job_dir / stale).unlink(missing_ok=True)
    outcome: JobResult | JobFailure
    try:
        job = read_job(job_dir)
        outcome = perform_job(job_dir, job, shelf=shelf, progress=ProgressReporter(job_dir, should_stop=should_stop))
    except Exception as error:  # noqa: BLE001 - the edge of the trainer: every failure becomes a typed result
        outcome = failure_from_error(error)
        # A failed job may leave an adapter half trained, or memory that the next one needs.
        shelf.clear()
        (job_dir / PAYLOAD_FILE).unlink(missing_ok=True)
    if job_dir.is_dir():
        write_result(job_dir, outcome)
    else:
        # The agent gave the job up and took its folder away: there is nobody to tell.
        _log.warning("job folder is gone: job=%s", job_dir.name)
    if isinstance(outcome, JobFailure):
        release_memory()
        _log.error("job failed: job=%s code=%s", job_dir.name, outcome.code)
    else:
        _log.info("job done: job=%s seconds=%.1f", job_dir.name, time.monotonic() - started)
    return outcome


def failure_from_error(error: Exception) -> JobFailure:
    """The failure that an error is told as."""
    if isinstance(error, RunSpecFaultsError):
        return JobFailure(
            code=error.code,
            message="the run's specification is not valid: " + "; ".join(str(fault) for fault in error.faults),
            advice="The study lead must correct the specification and create the run anew.",
        )
    if is_out_of_memory(error):
        error = OutOfMemoryError("the device has not enough memory for this job")
    if not isinstance(error, WardroundError):
        for frame in traceback.extract_tb(error.__traceback__):
            _log.error("unexpected %s at %s:%s in %s", type(error).__name__, frame.filename, frame.lineno, frame.name)
        error = UnexpectedFailureError("the trainer failed in a way that nobody foresaw", type=type(error).__name__)
    advice = error.advice if isinstance(error, TrainerError) else ""
    return JobFailure(code=error.code, message=error.message, advice=advice, facts=error.facts)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says, in one of the ways in which torch says it, that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in _MEMORY_SENTENCES)
