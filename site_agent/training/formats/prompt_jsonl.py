"""The format ``jsonl``: one object a line, ``{"id", "prompt", "completion", "patient_id"?}``. Read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD
from site_agent.training.data import Dataset
from site_agent.training.errors import DatasetEmptyError, DatasetMalformedError, DatasetMissingError
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.inspection import inspect_file

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PromptRecord:
    """A prompt and its completion, neither blank, nor is the id. Safety: its repr shows nothing of it."""

    record_id: str
    prompt: str
    completion: str
    patient_id: str | None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "PromptRecord(...)"

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        return self.record_id if self.patient_id is None else self.patient_id


def read_prompts(path: Path, *, patient_field: str = PATIENT_FIELD) -> Dataset:
    """Read a whole dataset; ``patient_field`` is the field that names a record's patient.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: a record is not what the schema says; the facts name its line and field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    records = tuple(_records_from_bytes(content.removeprefix(_BYTE_ORDER_MARK), patient_field))
    if not records:
        raise DatasetEmptyError("the dataset holds no record")
    return Dataset(records=records, sha256=hashlib.sha256(content).hexdigest())


def _records_from_bytes(content: bytes, patient_field: str) -> Iterator[PromptRecord]:
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield _record_from_line(line, number, patient_field)


def _record_from_line(line: bytes, number: int, patient_field: str) -> PromptRecord:
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
    return PromptRecord(
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


PROMPT_JSONL = DatasetFormat(read=read_prompts, inspect=inspect_file)
"""The row of the table."""
