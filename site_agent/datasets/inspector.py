"""Has the trainer's program look at a data file. This process never opens the file: it reads a digest and two counts.

Knows the program by its command line, or by a job's folder, never by import: torch and the records stay on the other
side. Safety: what the program answers is shown to people, so its texts are cut and hold no control characters.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_protocol.errors import Fact
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, sha256_hex_from_text
from site_agent.datasets.errors import DatasetFileError, InspectionFailedError, RecordFault
from site_agent.errors import JobError, JobFailedError
from site_agent.jobs.documents import JobDirectoryError, json_from_bytes, read_file
from site_agent.jobs.held_folder import JobsFolderUnsafeError, held_folder, remove_without_following
from site_agent.jobs.job_dir import INSPECTION_FILE, DataFile, JobKind, JobSpec, shown_text
from site_agent.jobs.record_schema import PATIENT_FIELD, RecordSchema
from site_agent.jobs.runner import JobRunner
from site_agent.jobs.spool_files import INSPECTIONS_FOLDER

_TIMEOUT_S = 3600.0
_MAX_FAULTS = 1000
_MAX_DOCUMENT_BYTES = 4 << 20
_MAX_COUNT = 2**53
_FILE_ADVICE = "Mend the file and run the command again; nothing was recorded."


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known of a data file without knowing a record."""

    sha256: Sha256Hex
    n_records: int
    n_patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDescription:
    """What the program is told of a data file. ``schema`` None: only what every task needs is checked."""

    path: Path
    format: str
    patient_field: str = PATIENT_FIELD
    schema: RecordSchema | None = None


class Inspector(Protocol):
    """Looks at data files for the registry."""

    def inspect(self, description: DataDescription) -> Inspection:
        """Digest and counts of a whole, well-formed file.

        Raises:
            DatasetFileError: missing, empty, or malformed; the error names file, line and field of each fault.
            InspectionFailedError: there is no verdict.
        """
        ...


class SubprocessInspector:
    """The trainer's ``inspect`` in a process of its own."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "site_agent.training")) -> None:
        """Name the trainer's program."""
        self._command = command

    def inspect(self, description: DataDescription) -> Inspection:
        """Digest and counts of a whole, well-formed file.

        Raises:
            DatasetFileError: missing, empty, or malformed; the error names file, line and field of each fault.
            InspectionFailedError: there is no verdict.
        """
        arguments = ["inspect", "--data", str(description.path), "--format", description.format, "--json"]
        arguments += ["--patient-field", description.patient_field]
        schema = None if description.schema is None else description.schema.to_document()
        # By the standard input: a command line is seen by every user of the machine.
        arguments += [] if schema is None else ["--schema", "-"]
        try:
            # Safety: no shell, and every argument is one word of a fixed command line.
            finished = subprocess.run(  # noqa: S603 - the program is this installation's own
                [*self._command, *arguments],
                input=b"" if schema is None else json.dumps(schema).encode(),
                capture_output=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise _no_verdict("did not end in time", n_seconds=_TIMEOUT_S) from error
        except OSError as error:
            raise _no_verdict("cannot be started", reason=error.strerror) from error
        return inspection_from_output(finished.stdout, exit_code=finished.returncode)


class JobInspector:
    """The trainer's ``inspect`` as a job: only the trainer sees the data."""

    def __init__(self, runner: JobRunner, jobs_dir: Path) -> None:
        """Keep who runs the job, and where its folder goes."""
        self._runner = runner
        self._jobs_dir = jobs_dir

    def inspect(self, description: DataDescription) -> Inspection:
        """See ``Inspector``. Runs an event loop of its own: for commands only."""
        names = (INSPECTIONS_FOLDER, secrets.token_hex(8))
        try:
            with held_folder(self._jobs_dir, *names, make=True) as folder:
                return self._inspect(folder, self._jobs_dir.joinpath(*names), description)
        except (OSError, JobsFolderUnsafeError) as error:
            raise _no_verdict("cannot be given a folder in the jobs folder", reason=type(error).__name__) from error
        finally:
            with suppress(OSError, JobsFolderUnsafeError), held_folder(self._jobs_dir, INSPECTIONS_FOLDER) as parent:
                remove_without_following(parent / names[1])

    def _inspect(self, folder: Path, job_dir: Path, description: DataDescription) -> Inspection:
        job = JobSpec(
            job_id=job_dir.name,
            kind=JobKind.INSPECT,
            data=DataFile(
                path=str(description.path), format=description.format, patient_field=description.patient_field
            ),
            seed=0,
            timeout_s=_TIMEOUT_S,
            schema=None if description.schema is None else description.schema.to_document(),
        )
        failure: JobFailedError | None = None
        try:
            asyncio.run(self._runner.run_training_job(job_dir, job, on_progress=lambda _: None))
        except JobFailedError as error:
            failure = error
        except (JobError, JobDirectoryError) as error:
            advice = "Nothing was recorded; run the command again then."
            raise InspectionFailedError(error.message, advice=advice) from error
        try:
            document = read_file(folder / INSPECTION_FILE, _MAX_DOCUMENT_BYTES)
        except JobDirectoryError:
            if failure is None:
                raise _no_verdict("gave no JSON document") from None
            raise DatasetFileError(
                failure.message, failure_code=failure.failure_code, advice=failure.advice or _FILE_ADVICE
            ) from failure
        return inspection_from_output(document, exit_code=0 if failure is None else 1)


def inspection_from_output(stdout: bytes, *, exit_code: int) -> Inspection:
    """Read the program's one JSON document.

    Raises:
        DatasetFileError: it says what is wrong with the file.
        InspectionFailedError: it says nothing that can be understood.
    """
    try:
        document = json_from_bytes(stdout)
    except ValueError as error:
        # Its error stream may quote a record: it is not repeated here.
        raise _no_verdict("gave no JSON document", exit_code=exit_code) from error
    if not isinstance(document, dict):
        raise _no_verdict("gave no JSON document", exit_code=exit_code)
    failure = document.get("error")
    if isinstance(failure, dict):
        raise _file_error(failure)
    try:
        sha256 = sha256_hex_from_text(str(document.get("sha256")))
    except IdentifierInvalidError as error:
        raise _no_verdict("gave no digest", exit_code=exit_code) from error
    n_records, n_patients = document.get("records"), document.get("patients")
    if exit_code != 0 or not _is_count(n_records) or not _is_count(n_patients):
        raise _no_verdict("gave no counts", exit_code=exit_code)
    return Inspection(sha256=sha256, n_records=int(str(n_records)), n_patients=int(str(n_patients)))


def _file_error(document: Mapping[str, object]) -> DatasetFileError:
    facts: dict[str, Fact] = {}
    listed = document.get("facts")
    if isinstance(listed, dict):
        for key, value in listed.items():
            if isinstance(value, str | int | float | bool) and str(key).isidentifier():
                facts[str(key)] = shown_text(value) if isinstance(value, str) else value
    reserved = {"message", "failure_code", "advice", "self", "faults", "n_faults"}
    faults = _record_faults(document.get("faults"))
    n_faults = document.get("n_faults")
    return DatasetFileError(
        shown_text(str(document.get("message") or "the data file cannot be used")),
        failure_code=shown_text(str(document.get("code") or "data-invalid")),
        advice=shown_text(str(document.get("advice") or _FILE_ADVICE)),
        faults=faults,
        n_faults=int(str(n_faults)) if _is_count(n_faults) else len(faults),
        **{key: value for key, value in facts.items() if key not in reserved},
    )


def _record_faults(value: object) -> tuple[RecordFault, ...]:
    faults: list[RecordFault] = []
    for item in value[:_MAX_FAULTS] if isinstance(value, list) else []:
        if not isinstance(item, dict):
            continue
        file, line, name, fault = (item.get(key) for key in ("file", "line", "field", "fault"))
        places_are_texts = isinstance(file, str | None) and isinstance(name, str | None)
        if isinstance(line, int) and places_are_texts and isinstance(fault, str):
            faults.append(RecordFault(file=_shown(file), line=line, field=_shown(name), fault=shown_text(fault)))
    return tuple(faults)


def _shown(name: str | None) -> str | None:
    return None if name is None else shown_text(name)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _no_verdict(what: str, **facts: Fact) -> InspectionFailedError:
    advice = "Check that the training part is installed ('wardround-site doctor'), then run the command again."
    return InspectionFailedError(f"the program that inspects data files {what}", advice=advice, **facts)
