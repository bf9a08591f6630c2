"""Records of a dataset: read strictly, counted by patient, split by a hash. Knows files and no tensors.

A dataset is JSONL: one object a line, ``{"id", "prompt", "completion", "patient_id"?}``. Which records are held out is
decided by a hash of the patient (of the record where no patient is named), so that it is the same in each round, and
no patient is on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD
from site_agent.training.errors import (
    DatasetEmptyError,
    DatasetFormatUnknownError,
    DatasetMalformedError,
    DatasetMissingError,
)

_SPLIT_DOMAIN = "wardround/split/"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Record:
    """One record. Safety: its repr shows nothing of it. Invariant: id, prompt and completion are not blank."""

    record_id: str
    prompt: str
    completion: str
    patient_id: str | None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "Record(...)"

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        return self.record_id if self.patient_id is None else self.patient_id

    @property
    def split_hash(self) -> int:
        """uint64, uniform over persons: SHA-256 of the person's key, first eight bytes, big-endian."""
        return int.from_bytes(hashlib.sha256((_SPLIT_DOMAIN + self.person).encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All records of a file, in its order. Invariant: there is at least one.

    Attributes:
        sha256: of the file's bytes.
    """

    records: tuple[Record, ...]
    sha256: str

    @property
    def n_patients(self) -> int:
        """Distinct persons: a record without a patient counts as one of its own."""
        return len({(record.patient_id is None, record.person) for record in self.records})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Records to train on, in file order, and held-out records in the order of their hash, at most ``max_records``."""

    training: tuple[Record, ...]
    held_out: tuple[Record, ...]


def read_dataset(path: Path, data_format: str = "jsonl", *, patient_field: str = PATIENT_FIELD) -> Dataset:
    """Read a whole dataset; ``patient_field`` is the field that names a record's patient.

    Raises:
        DatasetFormatUnknownError: the format is not jsonl.
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: a record is not what the schema says; the facts name its line and field.
    """
    if data_format != "jsonl":
        raise DatasetFormatUnknownError("this trainer cannot read the dataset's format", format=data_format[:40])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    records = tuple(_records_from_bytes(content.removeprefix(_BYTE_ORDER_MARK), patient_field))
    if not records:
        raise DatasetEmptyError("the dataset holds no record")
    return Dataset(records=records, sha256=hashlib.sha256(content).hexdigest())


def split_dataset(dataset: Dataset, *, holdout_fraction: float, max_records: int) -> Split:
    """Hold out the persons whose hash is below ``holdout_fraction``; at most ``max_records`` of their records are used.

    A held-out record beyond ``max_records`` is used for nothing: training on it would put its patient on both sides.
    """
    limit = int(holdout_fraction * 2**64)
    training: list[Record] = []
    held_out: list[tuple[int, str, Record]] = []
    for record in dataset.records:
        hashed = record.split_hash
        if hashed < limit:
            held_out.append((hashed, record.record_id, record))
        else:
            training.append(record)
    held_out.sort(key=lambda item: item[:2])
    return Split(training=tuple(training), held_out=tuple(record for _, _, record in held_out[:max_records]))


def _records_from_bytes(content: bytes, patient_field: str) -> Iterator[Record]:
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield _record_from_line(line, number, patient_field)


def _record_from_line(line: bytes, number: int, patient_field: str) -> Record:
    try:
        value: object = json.loads(line.decode())
    except UnicodeDecodeError:
        raise DatasetMalformedError("a record is not UTF-8 text", record=number) from None
    except (ValueError, RecursionError):
        # The parser's own error would quote the line.
        what = "a line is blank" if not line.strip() else "a record is not JSON"
        raise DatasetMalformedError(what, record=number) from None
    if not isinstance(value, dict):
        raise DatasetMalformedError("a record is not a JSON object", record=number)
    patient_id = value.get(patient_field)
    return Record(
        record_id=_text(value.get("id"), "id", number),
        prompt=_text(value.get("prompt"), "prompt", number),
        completion=_text(value.get("completion"), "completion", number),
        patient_id=None if patient_id is None else _text(patient_id, patient_field, number),
    )


def _text(value: object, field: str, number: int) -> str:
    if value is None:
        raise DatasetMalformedError("a field of a record is missing", record=number, field=field)
    if not isinstance(value, str):
        raise DatasetMalformedError("a field of a record is not text", record=number, field=field)
    if not value.strip():
        raise DatasetMalformedError("a field of a record is blank", record=number, field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DatasetMalformedError("a field of a record is not valid Unicode", record=number, field=field) from None
    return value
