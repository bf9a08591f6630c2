"""How a job ended, and how that is written: last of all, and whole. Knows no model and no library."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from site_agent.jobs.job_dir import CHECKPOINT_FOLDER, PAYLOAD_FILE, JobFailure, JobResult, write_result
from site_agent.training.versions import installed_versions

_log = logging.getLogger(__name__)


def result_without_training(
    *, records: int, patients: int, sha256: str, started: float, metrics: Mapping[str, float] | None = None
) -> JobResult:
    """The result of a job that read a dataset and trained nothing: no device, and nothing held out."""
    return JobResult(
        records=records,
        patients=patients,
        held_out_records=0,
        seconds=time.monotonic() - started,
        peak_memory_bytes=0,
        device="none",
        precision="none",
        versions=installed_versions(),
        sha256=sha256,
        metrics=metrics or {},
    )


def write_outcome(job_dir: Path, outcome: JobResult | JobFailure, *, started: float) -> None:
    """Close a job: ``result.json``, and no checkpoint; of a job that failed no payload.

    Args:
        job_dir: where the job is.
        outcome: how it ended.
        started: when it began, by ``time.monotonic``.
    """
    if isinstance(outcome, JobFailure):
        (job_dir / PAYLOAD_FILE).unlink(missing_ok=True)
    if job_dir.is_dir():
        write_result(job_dir, outcome)
        shutil.rmtree(job_dir / CHECKPOINT_FOLDER, ignore_errors=True)
    else:
        # The agent gave the job up and took its folder away: there is nobody to tell.
        _log.warning("job folder is gone: job=%s", job_dir.name)
    if isinstance(outcome, JobFailure):
        _log.error("job failed: job=%s code=%s", job_dir.name, outcome.code)
    else:
        _log.info("job done: job=%s seconds=%.1f", job_dir.name, time.monotonic() - started)
