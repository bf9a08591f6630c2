"""The job directory: the one contract between the agent, which has keys and network, and the trainer, which has data.

Both sides import this module, so it knows neither torch nor the network: it knows file names, documents and how a file
appears whole or not at all. The agent fills a folder (``layout.json``, ``global.safetensors``, ``job.json`` last); the
trainer answers in it (``progress.jsonl``, ``payload.safetensors``, ``result.json`` last). A reader that sees
``job.json`` or ``result.json`` may therefore read every file that it speaks of. ``checkpoint/`` is the trainer's
own: the agent never reads it, and only decides whether it stays. ``site/`` holds what a local rule keeps at this site
between rounds: the agent writes what it was, and the trainer beside it what it becomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fl_protocol.errors import Fact
from site_agent.jobs.documents import (
    DocumentReader,
    JobDirectoryError,
    JobFileInvalidError,
    JobFileMissingError,
    read_document,
    read_member,
    write_document,
    write_file,
)
from site_agent.jobs.progress_file import (
    PROGRESS_FILE,
    ProgressLine,
    ProgressState,
    append_progress,
    mend_progress,
    read_progress,
    touch_progress,
)
from site_agent.jobs.record_schema import PATIENT_FIELD

__all__ = [
    "PROGRESS_FILE",
    "BaseModelFolder",
    "DataFile",
    "DeviceChoice",
    "JobDirectoryError",
    "JobFailure",
    "JobFileInvalidError",
    "JobFileMissingError",
    "JobKind",
    "JobResult",
    "JobSpec",
    "ProgressLine",
    "ProgressState",
    "append_progress",
    "mend_progress",
    "read_document",
    "read_job",
    "read_progress",
    "read_result",
    "touch_progress",
    "write_document",
    "write_file",
    "write_job",
    "write_result",
]

JOB_FILE = "job.json"
LAYOUT_FILE = "layout.json"
GLOBAL_FILE = "global.safetensors"
SITE_FOLDER = "site"
PRIVATE_FILE = "private.safetensors"
"""In the site folder: what the run's local rule left at this site in the last round that counted it."""
NEXT_PRIVATE_FILE = "private.next.safetensors"
"""In the site folder: what it leaves in this one."""
PAYLOAD_FILE = "payload.safetensors"
RESULT_FILE = "result.json"
INSPECTION_FILE = "inspection.json"
"""What an inspection found: the one document that ``inspect --json`` prints."""
FEATURES_FOLDER = "features"
"""Beside the job folders of a run, in its spool: what the run's trainer computed of this site's images once."""
CHECKPOINT_FOLDER = "checkpoint"
CHECKPOINT_FILE = "checkpoint.safetensors"

_MAX_RESULT_BYTES = 1 << 20
_MAX_SHOWN = 2000
_MAX_COUNT = 2**53

READY_FILE = "ready.json"
"""In a spool folder: the warm trainer is up."""
STOP_FILE = "stop"
"""In a spool folder: the warm trainer is to end."""


class JobKind(StrEnum):
    """What the trainer is asked for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    INSPECT = "inspect"


class DeviceChoice(StrEnum):
    """Where the trainer may compute; ``auto`` lets it choose and say what it chose."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelFolder:
    """A base model on the trainer's own disk, and the digest that the RunSpec names."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A registered dataset on the trainer's own disk.

    Attributes:
        sha256: of the file as it was registered; None where the trainer is to find it out.
        patient_field: the field that names a record's patient.
    """

    path: str
    format: str = "jsonl"
    sha256: str | None = None
    patient_field: str = PATIENT_FIELD

    def to_document(self) -> dict[str, object]:
        """As it stands in ``job.json``; the field of the patient only where it is another than usual."""
        document: dict[str, object] = {"path": self.path, "format": self.format, "sha256": self.sha256}
        return document if self.patient_field == PATIENT_FIELD else {**document, "patient_field": self.patient_field}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job. Invariant: all but an inspection name a run spec and a base model.

    Attributes:
        schema: of an inspection: what the dataset's owner declared of its fields, if anything.
    """

    job_id: str
    kind: JobKind
    data: DataFile
    seed: int
    timeout_s: float
    run_id: str | None = None
    round_index: int = 0
    round_attempt: int = 0
    run_spec: Mapping[str, object] | None = None
    base_model: BaseModelFolder | None = None
    threads: int | None = None
    device: DeviceChoice = DeviceChoice.AUTO
    schema: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        """Check what a trainer would otherwise stumble over hours later."""
        if not self.job_id or "/" in self.job_id or self.job_id.startswith("."):
            raise JobFileInvalidError("a job_id names a folder", field="job_id")
        if not 0 <= self.seed < 2**64:
            raise JobFileInvalidError("a seed is an unsigned 64-bit integer", field="seed")
        if self.round_index < 0 or self.round_attempt < 0:
            raise JobFileInvalidError("round_index and round_attempt count from 0", field="round_index")
        if self.threads is not None and self.threads < 1:
            raise JobFileInvalidError("threads is at least 1, or null for the trainer's choice", field="threads")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise JobFileInvalidError("timeout_s is a positive duration", field="timeout_s")
        if self.kind is not JobKind.INSPECT and (self.run_spec is None or self.base_model is None):
            raise JobFileInvalidError("a job that trains or evaluates needs run_spec and base_model", field="run_spec")

    def to_document(self) -> dict[str, object]:
        """The document that ``job.json`` holds."""
        base_model = self.base_model
        return {
            "job_id": self.job_id,
            "kind": self.kind.value,
            "run_id": self.run_id,
            "round_index": self.round_index,
            "round_attempt": self.round_attempt,
            "run_spec": None if self.run_spec is None else dict(self.run_spec),
            "base_model": None if base_model is None else {"path": base_model.path, "sha256": base_model.sha256},
            "data": self.data.to_document(),
            "seed": self.seed,
            "threads": self.threads,
            "device": self.device.value,
            "timeout_s": self.timeout_s,
            **({} if self.schema is None else {"schema": dict(self.schema)}),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> JobSpec:
        """Read a job strictly: a key that this trainer does not know is a job it must not pretend to do.

        Raises:
            JobFileInvalidError: a key is missing, unknown or of another type.
        """
        reader = DocumentReader(document, JOB_FILE)
        reader.refuse_unknown(_JOB_KEYS)
        base_model = reader.section("base_model")
        data = reader.section("data")
        if data is None:
            raise JobFileInvalidError("a job names its data", file=JOB_FILE, field="data")
        return cls(
            job_id=reader.text("job_id"),
            kind=read_member(JobKind, reader.text("kind"), field_name="kind"),
            run_id=reader.optional_text("run_id"),
            round_index=reader.integer("round_index", default=0),
            round_attempt=reader.integer("round_attempt", default=0),
            run_spec=reader.optional_mapping("run_spec"),
            base_model=None
            if base_model is None
            else BaseModelFolder(path=base_model.text("path"), sha256=base_model.text("sha256")),
            data=DataFile(
                path=data.text("path"),
                format=data.text("format", default="jsonl"),
                sha256=data.optional_text("sha256"),
                patient_field=data.text("patient_field", default=PATIENT_FIELD),
            ),
            seed=reader.integer("seed"),
            threads=reader.optional_integer("threads"),
            device=read_member(DeviceChoice, reader.text("device", default="auto"), field_name="device"),
            timeout_s=reader.number("timeout_s"),
            schema=reader.optional_mapping("schema"),
        )


_JOB_KEYS = frozenset(
    {
        "job_id",
        "kind",
        "run_id",
        "round_index",
        "round_attempt",
        "run_spec",
        "base_model",
        "data",
        "seed",
        "threads",
        "device",
        "timeout_s",
        "schema",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A job that succeeded.

    Attributes:
        records: records of the dataset. patients: distinct patients (records without one count as one each).
        held_out_records: records that the evaluation used.
        sha256: digest of the dataset file's bytes.
        metrics: losses, counts and norms of this site alone. Safety: they stay at the site; only the payload's
            segments leave, through the secure sum.
    """

    records: int
    patients: int
    held_out_records: int
    seconds: float
    peak_memory_bytes: int
    device: str
    precision: str
    versions: Mapping[str, str]
    sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_document(self) -> dict[str, object]:
        """The document that ``result.json`` holds."""
        return {
            "status": "succeeded",
            "records": self.records,
            "patients": self.patients,
            "held_out_records": self.held_out_records,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device": self.device,
            "precision": self.precision,
            "versions": dict(self.versions),
            "sha256": self.sha256,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """A job that failed for a named reason. Safety: message, advice and facts never quote a record."""

    code: str
    message: str
    advice: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def to_document(self) -> dict[str, object]:
        """The document that ``result.json`` holds."""
        return {
            "status": "failed",
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "facts": dict(self.facts),
        }


def write_job(job_dir: Path, job: JobSpec) -> None:
    """Write ``job.json``, which opens the job: everything else the trainer needs is already in the folder."""
    write_document(job_dir / JOB_FILE, job.to_document())


def read_job(job_dir: Path) -> JobSpec:
    """Read ``job.json``.

    Raises:
        JobFileMissingError: there is none.
        JobFileInvalidError: it is not a job of this contract.
    """
    return JobSpec.from_document(read_document(job_dir / JOB_FILE))


def write_result(job_dir: Path, result: JobResult | JobFailure) -> None:
    """Write ``result.json``, which closes the job: the payload is on the disk before."""
    write_document(job_dir / RESULT_FILE, result.to_document())


def read_result(job_dir: Path) -> JobResult | JobFailure | None:
    """Read ``result.json``; None while the job is not closed.

    Safety: what a trainer says is shown to people and written to logs, so texts are cut and hold no control characters.

    Raises:
        JobFileInvalidError: it is not a result of this contract.
    """
    try:
        reader = DocumentReader(read_document(job_dir / RESULT_FILE, _MAX_RESULT_BYTES), RESULT_FILE)
    except JobFileMissingError:
        return None
    match reader.text("status"):
        case "succeeded":
            return JobResult(
                records=_count(reader, "records"),
                patients=_count(reader, "patients"),
                held_out_records=_count(reader, "held_out_records"),
                seconds=reader.number("seconds"),
                peak_memory_bytes=_count(reader, "peak_memory_bytes"),
                device=shown_text(reader.text("device")),
                precision=shown_text(reader.text("precision")),
                versions={
                    shown_text(key): shown_text(str(value))
                    for key, value in (reader.optional_mapping("versions") or {}).items()
                },
                sha256=shown_text(reader.text("sha256")),
                metrics=reader.figures("metrics"),
            )
        case "failed":
            return JobFailure(
                code=shown_text(reader.text("code")),
                message=shown_text(reader.text("message")),
                advice=shown_text(reader.text("advice", default="")),
                facts={
                    shown_text(key): shown_text(value) if isinstance(value, str) else value
                    for key, value in (reader.optional_mapping("facts") or {}).items()
                    if isinstance(value, str | int | float | bool | None)
                },
            )
        case other:
            message = "a result has succeeded or failed"
            raise JobFileInvalidError(message, file=RESULT_FILE, field="status", value=shown_text(other[:40]))


def shown_text(text: str) -> str:
    """A trainer's text as it may be shown: cut, and whatever steers a terminal or breaks a line of a log replaced."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_SHOWN])


def _count(reader: DocumentReader, key: str) -> int:
    value = reader.integer(key)
    if not 0 <= value < _MAX_COUNT:
        raise JobFileInvalidError("a count is from 0, and not beyond reason", file=RESULT_FILE, field=key)
    return value
