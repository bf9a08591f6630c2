"""Looks at a dataset for its owner: by a command, or as a job of the jobs folder. Loads no numeric library itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from fl_protocol.errors import WardroundError
from site_agent.jobs.job_dir import (
    INSPECTION_FILE,
    JobDirectoryError,
    JobFailure,
    JobKind,
    JobResult,
    JobSpec,
    read_job,
    write_document,
)
from site_agent.jobs.record_schema import RecordSchema, schema_from_document
from site_agent.training.errors import DatasetMalformedError, TrainerError, UnexpectedFailureError
from site_agent.training.formats import format_called
from site_agent.training.inspection import FileReport
from site_agent.training.outcomes import result_without_training, write_outcome

_log = logging.getLogger(__name__)


def look_at_data(
    path: Path, *, data_format: str, patient_field: str, schema: RecordSchema | None
) -> tuple[FileReport, dict[str, object]]:
    """Look at every record, and what is to be told of it: digest and counts, or the places of its faults.

    Raises:
        DatasetError: the file cannot be looked at, or holds nothing.
        LibraryMissingError: the format needs a library that is not installed.
    """
    report = format_called(data_format).inspect(path, patient_field=patient_field, schema=schema)
    if report.n_faults:
        return report, {"error": _faults_document(report)}
    return report, {"sha256": report.sha256, "records": report.n_records, "patients": report.n_patients}


def is_inspection(job_dir: Path) -> bool:
    """Whether the job of a folder is to look at a dataset."""
    try:
        return read_job(job_dir).kind is JobKind.INSPECT
    except JobDirectoryError:
        return False


def close_inspection(job_dir: Path) -> JobResult | JobFailure:
    """Do the inspection of a folder and close it, whatever happens."""
    started = time.monotonic()
    outcome: JobResult | JobFailure
    try:
        outcome = inspect_for_job(job_dir, read_job(job_dir))
    except Exception as error:  # noqa: BLE001 - the edge of the trainer: every failure becomes a typed result
        if not isinstance(error, WardroundError):
            # Safety: its text may quote a record.
            _log.error("unexpected %s while a dataset was looked at", type(error).__name__)
            error = UnexpectedFailureError("the trainer failed in a way that nobody foresaw", type=type(error).__name__)
        advice = error.advice if isinstance(error, TrainerError) else ""
        outcome = JobFailure(code=error.code, message=error.message, advice=advice, facts=error.facts)
    write_outcome(job_dir, outcome, started=started)
    return outcome


def inspect_for_job(job_dir: Path, job: JobSpec) -> JobResult:
    """Do the inspection of a folder; ``inspection.json`` tells each fault, the result only the counts.

    Raises:
        DatasetError: it cannot be used as a dataset.
        RecordSchemaFaultsError: the declared schema is none.
    """
    started = time.monotonic()
    schema = None if job.schema is None else schema_from_document(job.schema)
    report, document = look_at_data(
        Path(job.data.path), data_format=job.data.format, patient_field=job.data.patient_field, schema=schema
    )
    write_document(job_dir / INSPECTION_FILE, document)
    if report.n_faults:
        message = f"{report.n_faults} faults in {report.n_records} records"
        first = report.faults[0]
        raise DatasetMalformedError(message, file=first.file, record=first.line, fault=first.fault)
    return result_without_training(
        records=report.n_records, patients=report.n_patients, sha256=report.sha256, started=started
    )


def _faults_document(report: FileReport) -> Mapping[str, object]:
    """The places of a dataset's faults. Never what stands there."""
    first = report.faults[0]
    facts: dict[str, object] = {"file": first.file, "record": first.line, "fault": first.fault}
    return {
        "code": DatasetMalformedError.code,
        "message": f"{report.n_faults} faults in {report.n_records} records",
        "advice": DatasetMalformedError.advice,
        "facts": facts if first.field is None else {**facts, "field": first.field},
        "n_faults": report.n_faults,
        "records": report.n_records,
        "faults": [
            {
                "file": fault.file,
                "line": fault.line,
                "field": fault.field,
                "fault": fault.fault,
                "path": ", ".join([fault.file, f"line {fault.line}", *([] if fault.field is None else [fault.field])]),
                "message": fault.fault,
            }
            for fault in report.faults
        ],
    }
