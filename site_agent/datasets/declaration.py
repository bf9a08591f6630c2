"""The YAML file by which a data owner registers a dataset. Reads no data, only the declaration of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import yaml

from site_agent.datasets.errors import DatasetDeclarationError
from site_agent.datasets.inspector import DataDescription
from site_agent.jobs.record_schema import (
    PATIENT_FIELD,
    FieldKind,
    RecordSchema,
    RecordSchemaFaultsError,
    schema_from_document,
)
from site_agent.strict_yaml import read_yaml

FORMATS = frozenset(
    f"{shape}{container}" for shape in ("", "preferences-", "text-") for container in ("jsonl", "csv", "parquet")
) | {"timeline-rows", "omop", "fhir", "image-manifest"}
"""The names of the trainer's formats (``site_agent/training/formats``), which the agent cannot import."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TAG = re.compile(r"[a-z0-9][a-z0-9._:-]{0,99}")
_KEYS = frozenset(
    {
        "name",
        "path",
        "format",
        "purposes",
        "description",
        "schema",
        "patient_field",
        "legal_basis",
        "consent",
        "expires",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDeclaration:
    """What the owner says of a dataset.

    Attributes:
        path: absolute.
        schema: the fields of its records; None: only what every task needs is checked.
        patient_field: the field that names a record's patient.
        legal_basis: the ground on which it is processed, as a tag of the hospital's own, for example gdpr-9-2-j.
        consent: the consent under which its records were given, as a tag, for example broad-consent-2024.
        expires_on: the last day on which it may be used.
    """

    name: str
    path: Path
    format: str
    purposes: tuple[str, ...]
    description: str | None = None
    schema: RecordSchema | None = None
    patient_field: str = PATIENT_FIELD
    legal_basis: str | None = None
    consent: str | None = None
    expires_on: date | None = None

    def data_file(self) -> DataDescription:
        """What the inspecting program is told of the file."""
        return DataDescription(path=self.path, format=self.format, patient_field=self.patient_field, schema=self.schema)


def load_declaration(file: Path) -> DatasetDeclaration:
    """Read a declaration; a relative ``path`` is relative to the declaration's own folder.

    Raises:
        DatasetDeclarationError: the file is missing, no YAML, or has faults; all are listed.
    """
    try:
        document = read_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetDeclarationError((f"{file} is not there",)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetDeclarationError((f"{file.name} cannot be read: {error}",)) from error
    except yaml.YAMLError as error:
        raise DatasetDeclarationError((f"{file.name} is no YAML: {' '.join(str(error).split())}",)) from error
    if not isinstance(document, dict):
        raise DatasetDeclarationError((f"{file.name} is not a mapping of keys to values",))
    return parse_declaration(document, folder=file.absolute().parent)


def parse_declaration(document: Mapping[str, object], *, folder: Path) -> DatasetDeclaration:
    """Check a declaration.

    Raises:
        DatasetDeclarationError: it has faults; all are listed.
    """
    faults: list[str] = []
    texts = {key: _text(document, key, faults) for key in ("name", "path", "format", "description", "patient_field")}
    tags = {key: _tag(document, key, faults) for key in ("legal_basis", "consent")}
    name, path, data_format = texts["name"], texts["path"], texts["format"] or "jsonl"
    if name is None or _NAME.fullmatch(name) is None:
        faults.append("name: is 1 to 63 lower-case letters, digits and hyphens")
    if path is None:
        faults.append("path: is missing")
    if data_format not in FORMATS:
        faults.append(f"format: is {data_format!r}, and must be one of: {', '.join(sorted(FORMATS))}")
    purposes = _purposes(document.get("purposes"), faults)
    schema = _schema(document, faults)
    expires_on = _day(document, "expires", faults)
    patient_field = texts["patient_field"] or PATIENT_FIELD
    if schema is not None:
        faults.extend(_patient_field_faults(schema, patient_field, is_named=texts["patient_field"] is not None))
    known = ", ".join(sorted(_KEYS))
    unknown = sorted(str(key) for key in document if key not in _KEYS)
    faults.extend(f"{key}: is not a known key; known here: {known}" for key in unknown)
    if faults or name is None or path is None:
        raise DatasetDeclarationError(tuple(faults))
    return DatasetDeclaration(
        name=name,
        path=(folder / path).absolute(),
        format=data_format,
        purposes=purposes,
        description=texts["description"],
        schema=schema,
        patient_field=patient_field,
        legal_basis=tags["legal_basis"],
        consent=tags["consent"],
        expires_on=expires_on,
    )


def _text(document: Mapping[str, object], key: str, faults: list[str]) -> str | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{key}: is not a text")
        return None
    return value


def _tag(document: Mapping[str, object], key: str, faults: list[str]) -> str | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or _TAG.fullmatch(value) is None:
        faults.append(f"{key}: is one tag of lower-case letters, digits, dots, colons, underscores and hyphens")
        return None
    return value


def _day(document: Mapping[str, object], key: str, faults: list[str]) -> date | None:
    """A day; YAML reads 2027-06-30 as one by itself. An instant is no day."""
    value = document.get(key)
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        faults.append(f"{key}: is the last day of use, for example 2027-06-30")
        return None


def _schema(document: Mapping[str, object], faults: list[str]) -> RecordSchema | None:
    if document.get("schema") is None:
        return None
    try:
        return schema_from_document(document["schema"])
    except RecordSchemaFaultsError as error:
        faults.extend(error.faults)
        return None


def _patient_field_faults(schema: RecordSchema, patient_field: str, *, is_named: bool) -> Iterator[str]:
    rule = next((rule for rule in schema.fields if rule.name == patient_field), None)
    if rule is None and is_named:
        yield "patient_field: is not a field of the schema"
    if rule is not None and rule.kind is not FieldKind.TEXT:
        yield f"schema.{patient_field}.type: a patient's name is of type text"


def _purposes(value: object, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        faults.append("purposes: is a list of at least one purpose, for example [research]")
        return ()
    purposes = tuple(sorted({item.strip() for item in value if isinstance(item, str) and item.strip()}))
    if len(purposes) != len(value):
        faults.append("purposes: holds something empty, repeated or that is no text")
    return purposes
