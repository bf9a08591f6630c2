"""Which fields a dataset's records have: declared by its owner, checked by the trainer. Pure; knows no file.

Safety: a check says which field is wrong and how, by closed codes. It never says what stands there, and names no field
that nobody declared: a key that an export put there by mistake may itself be patient data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

PATIENT_FIELD = "patient_id"
"""The field that names a record's patient, where the owner declares no other."""

MAX_FIELDS = 200
_MAX_NAME_LENGTH = 64
_MAX_ALLOWED = 1000


class FieldKind(StrEnum):
    """What a field holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"


class FieldFault(StrEnum):
    """How a field can be wrong."""

    MISSING = "missing"
    NOT_TEXT = "not-text"
    NOT_UNICODE = "not-unicode"
    BLANK = "blank"
    NOT_A_WHOLE_NUMBER = "not-a-whole-number"
    NOT_A_NUMBER = "not-a-number"
    NOT_TRUE_OR_FALSE = "not-true-or-false"
    NOT_A_DATE = "not-a-date"
    NOT_ALLOWED = "not-an-allowed-value"
    TOO_SHORT = "too-short"
    TOO_LONG = "too-long"
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    UNDECLARED = "undeclared-field"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    """One field.

    Attributes:
        name: its key in a record.
        kind: what it holds; a date is a text of the form 2026-01-31.
        is_required: whether each record has it; null counts as not having it.
        is_blank_allowed: whether a text may hold nothing but white space.
        allowed: the only values; None: any.
        min_length, max_length: of a text, in characters.
        at_least, at_most: of a number.
    """

    name: str
    kind: FieldKind
    is_required: bool = True
    is_blank_allowed: bool = True
    allowed: tuple[str | int, ...] | None = None
    min_length: int | None = None
    max_length: int | None = None
    at_least: float | None = None
    at_most: float | None = None

    def check(self, value: object) -> FieldFault | None:
        """The first fault of a value; None where there is none."""
        if value is None:
            return FieldFault.MISSING if self.is_required else None
        fault = self._check_kind(value)
        if fault is not None:
            return fault
        if self.allowed is not None and value not in self.allowed:
            return FieldFault.NOT_ALLOWED
        if isinstance(value, str):
            return self._check_length(value)
        return self._check_range(float(value)) if isinstance(value, int | float) else None

    def _check_kind(self, value: object) -> FieldFault | None:  # noqa: PLR0911 - one a kind and a way to miss it
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        match self.kind:
            case FieldKind.INTEGER:
                is_whole = is_number and isinstance(value, int) and abs(value) < 2**63
                return None if is_whole else FieldFault.NOT_A_WHOLE_NUMBER
            case FieldKind.NUMBER:
                is_finite = isinstance(value, int | float) and is_number and abs(value) < math.inf
                return None if is_finite and _fits_a_float(value) else FieldFault.NOT_A_NUMBER
            case FieldKind.BOOLEAN:
                return None if isinstance(value, bool) else FieldFault.NOT_TRUE_OR_FALSE
            case FieldKind.DATE:
                return None if isinstance(value, str) and _is_date(value) else FieldFault.NOT_A_DATE
            case FieldKind.TEXT:
                if not isinstance(value, str):
                    return FieldFault.NOT_TEXT
                if not _is_unicode(value):
                    return FieldFault.NOT_UNICODE
                return None if self.is_blank_allowed or value.strip() else FieldFault.BLANK

    def _check_length(self, value: str) -> FieldFault | None:
        if self.min_length is not None and len(value) < self.min_length:
            return FieldFault.TOO_SHORT
        return FieldFault.TOO_LONG if self.max_length is not None and len(value) > self.max_length else None

    def _check_range(self, value: float) -> FieldFault | None:
        if self.at_least is not None and value < self.at_least:
            return FieldFault.TOO_SMALL
        return FieldFault.TOO_LARGE if self.at_most is not None and value > self.at_most else None

    def to_document(self) -> dict[str, object]:
        """As the owner writes it."""
        document: dict[str, object] = {"type": self.kind.value, "required": self.is_required}
        bounds = {
            "allowed": None if self.allowed is None else list(self.allowed),
            "min_length": self.min_length,
            "max_length": self.max_length,
            "at_least": self.at_least,
            "at_most": self.at_most,
        }
        return document | {key: value for key, value in bounds.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSchema:
    """All fields of a record. Invariant: each name is there once."""

    fields: tuple[FieldRule, ...]

    def to_document(self) -> dict[str, object]:
        """As the owner writes it: name to rule."""
        return {rule.name: rule.to_document() for rule in self.fields}

    def check(self, record: Mapping[str, object]) -> Iterator[tuple[str | None, FieldFault]]:
        """Each fault of a record by field; fields that nobody declared are one fault together, without a name."""
        yield from check_fields(self.fields, record)
        if not record.keys() <= {rule.name for rule in self.fields}:
            yield None, FieldFault.UNDECLARED


def check_fields(rules: Sequence[FieldRule], record: Mapping[str, object]) -> Iterator[tuple[str, FieldFault]]:
    """Each fault of a record's named fields."""
    for rule in rules:
        fault = rule.check(record.get(rule.name))
        if fault is not None:
            yield rule.name, fault


class RecordSchemaFaultsError(ValueError):
    """A declared schema is not one.

    Attributes:
        faults: every fault, with its path.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        """Keep all faults."""
        super().__init__("; ".join(faults))
        self.faults = faults


_KEYS = frozenset({"type", "required", "allowed", "min_length", "max_length", "at_least", "at_most"})
_NUMBERS = frozenset({FieldKind.INTEGER, FieldKind.NUMBER})


def schema_from_document(document: object) -> RecordSchema:
    """Read a declared schema.

    Raises:
        RecordSchemaFaultsError: it has faults; all are listed.
    """
    if not isinstance(document, Mapping) or not document:
        raise RecordSchemaFaultsError(("schema: is a mapping of field names to rules, with at least one field",))
    faults: list[str] = []
    if len(document) > MAX_FIELDS:
        faults.append(f"schema: has {len(document)} fields, and may have {MAX_FIELDS}")
    rules = [_rule_from_document(name, rule, faults) for name, rule in document.items()]
    if faults:
        raise RecordSchemaFaultsError(tuple(faults))
    return RecordSchema(fields=tuple(rule for rule in rules if rule is not None))


def _rule_from_document(name: object, document: object, faults: list[str]) -> FieldRule | None:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME_LENGTH or not name.isprintable():
        faults.append(f"schema: a field's name is a text of 1 to {_MAX_NAME_LENGTH} printable characters")
        return None
    path = f"schema.{name}"
    if not isinstance(document, Mapping):
        faults.append(f"{path}: is a mapping, for example {{type: text}}")
        return None
    known = ", ".join(sorted(_KEYS))
    faults.extend(f"{path}.{key}: is not a known key; known here: {known}" for key in document if key not in _KEYS)
    kinds = {kind.value for kind in FieldKind}
    if document.get("type") not in kinds:
        faults.append(f"{path}.type: must be one of: {', '.join(FieldKind)}")
        return None
    kind = FieldKind(str(document["type"]))
    is_required = document.get("required", True)
    if not isinstance(is_required, bool):
        faults.append(f"{path}.required: is true or false")
    _check_use(path, kind, document, faults)
    return FieldRule(
        name=name,
        kind=kind,
        is_required=bool(is_required),
        allowed=_allowed(path, kind, document.get("allowed"), faults),
        min_length=_length(path, "min_length", document, faults),
        max_length=_length(path, "max_length", document, faults),
        at_least=_bound(path, "at_least", document, faults),
        at_most=_bound(path, "at_most", document, faults),
    )


def _check_use(path: str, kind: FieldKind, document: Mapping[object, object], faults: list[str]) -> None:
    """A bound that says nothing of this kind of field is a mistake, not a decoration."""
    usable = {"at_least": _NUMBERS, "at_most": _NUMBERS}
    usable |= dict.fromkeys(("min_length", "max_length"), frozenset({FieldKind.TEXT}))
    usable["allowed"] = frozenset({FieldKind.TEXT, FieldKind.INTEGER})
    for key, kinds in usable.items():
        if key in document and kind not in kinds:
            faults.append(f"{path}.{key}: says nothing of a field of type {kind.value}")


def _allowed(path: str, kind: FieldKind, value: object, faults: list[str]) -> tuple[str | int, ...] | None:
    if value is None:
        return None
    wanted = int if kind is FieldKind.INTEGER else str
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_ALLOWED:
        faults.append(f"{path}.allowed: is a list of 1 to {_MAX_ALLOWED} values")
        return None
    if not all(isinstance(item, wanted) and not isinstance(item, bool) for item in value):
        faults.append(f"{path}.allowed: holds a value that is not of type {kind.value}; put texts in quotes")
        return None
    return tuple(value)


def _length(path: str, key: str, document: Mapping[object, object], faults: list[str]) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        faults.append(f"{path}.{key}: is a whole number from 0")
        return None
    return value


def _bound(path: str, key: str, document: Mapping[object, object], faults: list[str]) -> float | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        faults.append(f"{path}.{key}: is a number")
        return None
    return value


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fits_a_float(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False
