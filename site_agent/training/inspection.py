"""Looks at every record of a data file, one at a time: its digest, its counts, and each fault by file, line and field.

Safety: neither a value nor an undeclared field's name is kept or told; a fault is a file, a line, a field and a closed
code. An operator who may read the file finds the rest there, and nobody else should. Patients are counted by keyed
hashes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD, FieldFault, FieldKind, FieldRule, RecordSchema, check_fields
from site_agent.training.errors import DatasetEmptyError, DatasetMalformedError, DatasetMissingError
from site_agent.training.rows.jsonl import JsonlFile
from site_agent.training.rows.row import RowFault, RowFile
from site_agent.training.text_records import PROMPTS, RecordShape, TextRecord

MAX_LISTED_FAULTS = 50
"""So many faults are listed; all are counted."""

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,30}")
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. ``field`` is None where the whole line is wrong, or a field that nobody declared."""

    file: str
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
    """Look at a whole JSONL file of prompts and completions. See ``inspect_rows``."""
    return inspect_rows(JsonlFile(path), PROMPTS, patient_field=patient_field, schema=schema)


def inspect_rows(
    rows: RowFile, shape: RecordShape[TextRecord], *, patient_field: str, schema: RecordSchema | None
) -> FileReport:
    """Look at a whole file.

    Args:
        rows: of the file.
        shape: what its records are.
        patient_field: the field that names a record's patient.
        schema: what its owner declared; None: only what the shape needs is checked.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: the file as a whole is not of its format; the facts name it.
        LibraryMissingError: the format needs a library that is not installed.
    """
    rules = _rules_of_shape(shape, patient_field)
    digest, report, patients, key = hashlib.sha256(), FileReport(), set[bytes](), os.urandom(32)
    try:
        for row in rows.look(digest):
            report.n_records += 1
            if isinstance(row.values, RowFault):
                report.note(Fault(file=rows.path.name, line=row.number, field=None, fault=row.values.value))
                continue
            values = _typed(row.values, schema) if rows.is_all_text and schema is not None else row.values
            for name, fault in _faults(values, rules, schema):
                report.note(Fault(file=rows.path.name, line=row.number, field=name, fault=fault.value))
            patients.add(_person(row.values, patient_field, key))
    except DatasetMalformedError as error:
        error.facts["file"] = rows.path.name
        raise
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    if report.n_records == 0:
        raise DatasetEmptyError("the dataset holds no record")
    report.sha256, report.n_patients = digest.hexdigest(), len(patients)
    return report


def _rules_of_shape(shape: RecordShape[TextRecord], patient_field: str) -> tuple[FieldRule, ...]:
    """What a shape needs of every record."""
    needed = [FieldRule(name=name, kind=FieldKind.TEXT, is_blank_allowed=False) for name in ("id", *shape.texts)]
    patient = FieldRule(name=patient_field, kind=FieldKind.TEXT, is_required=False, is_blank_allowed=False)
    return (*needed, patient)


def _typed(values: Mapping[str, object], schema: RecordSchema) -> Mapping[str, object]:
    """A row of CSV, in which everything is text, with numbers where the schema declares some and the text is one."""
    kinds = {rule.name: rule.kind for rule in schema.fields}
    return {name: _value_from_text(value, kinds.get(name)) for name, value in values.items()}


def _value_from_text(value: object, kind: FieldKind | None) -> object:
    if not isinstance(value, str):
        return value
    match kind:
        case FieldKind.INTEGER:
            return int(value) if _WHOLE_NUMBER.fullmatch(value) else value
        case FieldKind.NUMBER:
            try:
                number = float(value)
            except ValueError:
                return value
            return number if math.isfinite(number) else value
        case FieldKind.BOOLEAN:
            return _TRUTHS.get(value.lower(), value)
        case _:
            return value


def _faults(
    record: Mapping[str, object], rules: tuple[FieldRule, ...], schema: RecordSchema | None
) -> list[tuple[str | None, FieldFault]]:
    found: list[tuple[str | None, FieldFault]] = [*check_fields(rules, record)]
    if schema is not None:
        # One fault a field: what the task says of it comes first.
        told = {name for name, _ in found}
        found += [pair for pair in schema.check(record) if pair[0] not in told]
    return found


def _person(record: Mapping[str, object], patient_field: str, key: bytes) -> bytes:
    """A name for whom the record counts as: its patient, or itself where it names none. Known to nobody outside."""
    patient = record.get(patient_field)
    who = record.get("id") if patient is None else patient
    text = json.dumps([patient is None, who], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).digest()
