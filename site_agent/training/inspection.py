"""Looks at every record of a JSONL file, one line at a time: its digest, its counts, and each fault by line and field.

Safety: neither a value nor an undeclared field's name is kept or told; a fault is a line, a field and a closed code. An
operator who may read the file finds the rest there, and nobody else should. Patients are counted by keyed hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from site_agent.jobs.record_schema import PATIENT_FIELD, FieldFault, FieldKind, FieldRule, RecordSchema, check_fields
from site_agent.training.errors import DatasetEmptyError, DatasetMissingError

MAX_LINE_BYTES = 16 << 20
"""A longer line is a fault: it is never in memory whole."""
MAX_LISTED_FAULTS = 50
"""So many faults are listed; all are counted."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TASK_FIELDS = ("id", "prompt", "completion")


class LineFault(StrEnum):
    """How a whole line can be wrong."""

    TOO_LONG = "line-too-long"
    BLANK = "blank-line"
    NOT_UTF_8 = "not-utf-8"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. ``field`` is None where the whole line is wrong, or a field that nobody declared."""

    line: int
    field: str | None
    fault: str


@dataclass(slots=True, kw_only=True)
class FileReport:
    """What is known of a file after the look. ``n_records`` counts lines, good or not."""

    sha256: str = ""
    n_records: int = 0
    n_patients: int = 0
    n_faults: int = 0
    faults: list[Fault] = field(default_factory=list)

    def note(self, fault: Fault) -> None:
        """Count a fault, and list it while there is room."""
        self.n_faults += 1
        if len(self.faults) < MAX_LISTED_FAULTS:
            self.faults.append(fault)


def inspect_file(path: Path, *, patient_field: str = PATIENT_FIELD, schema: RecordSchema | None = None) -> FileReport:
    """Look at a whole file of prompts and completions.

    Args:
        path: of the file.
        patient_field: the field that names a record's patient.
        schema: what its owner declared; None: only what every task needs is checked.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
    """
    rules = _task_rules(patient_field)
    digest, report, patients, key = hashlib.sha256(), FileReport(), set[bytes](), os.urandom(32)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, digest), start=1):
                report.n_records = number
                record = _record_from_line(line)
                if isinstance(record, LineFault):
                    report.note(Fault(line=number, field=None, fault=record.value))
                    continue
                _check(record, number, rules, schema, report)
                patients.add(_person(record, patient_field, key))
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    if report.n_records == 0:
        raise DatasetEmptyError("the dataset holds no record")
    report.sha256, report.n_patients = digest.hexdigest(), len(patients)
    return report


def _task_rules(patient_field: str) -> tuple[FieldRule, ...]:
    """What every task needs of a record."""
    needed = [FieldRule(name=name, kind=FieldKind.TEXT, is_blank_allowed=False) for name in _TASK_FIELDS]
    patient = FieldRule(name=patient_field, kind=FieldKind.TEXT, is_required=False, is_blank_allowed=False)
    return (*needed, patient)


def _lines(file: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes | None]:
    """Each line without its end; None for one that is too long. Every byte goes through the digest."""
    is_first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        digest.update(line)
        is_too_long = len(line.removesuffix(b"\n")) > MAX_LINE_BYTES
        while is_too_long and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                break
            digest.update(line)
        if is_first:
            line, is_first = line.removeprefix(_BYTE_ORDER_MARK), False
            if not line:
                # A mark and nothing behind it: an empty file.
                return
        yield None if is_too_long else line.removesuffix(b"\n")


def _record_from_line(line: bytes | None) -> Mapping[str, object] | LineFault:
    if line is None:
        return LineFault.TOO_LONG
    if not line.strip():
        return LineFault.BLANK
    try:
        value: object = json.loads(line.decode())
    except UnicodeDecodeError:
        return LineFault.NOT_UTF_8
    except (ValueError, RecursionError):
        return LineFault.NOT_JSON
    return value if isinstance(value, dict) else LineFault.NOT_AN_OBJECT


def _check(
    record: Mapping[str, object],
    number: int,
    rules: tuple[FieldRule, ...],
    schema: RecordSchema | None,
    report: FileReport,
) -> None:
    found: list[tuple[str | None, FieldFault]] = [*check_fields(rules, record)]
    if schema is not None:
        # One fault a field: what the task says of it comes first.
        told = {name for name, _ in found}
        found += [pair for pair in schema.check(record) if pair[0] not in told]
    for name, fault in found:
        report.note(Fault(line=number, field=name, fault=fault.value))


def _person(record: Mapping[str, object], patient_field: str, key: bytes) -> bytes:
    """A name for whom the record counts as: its patient, or itself where it names none. Known to nobody outside."""
    patient = record.get(patient_field)
    who = record.get("id") if patient is None else patient
    text = json.dumps([patient is None, who], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).digest()
