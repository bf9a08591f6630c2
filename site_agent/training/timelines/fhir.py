"""FHIR R4: bundles in JSON files, or resources one a line in NDJSON files (as the bulk export writes them).

Read are Condition, MedicationRequest and Procedure, and Patient for sex and date of birth; any other resource is
passed over. A code is ``system|code`` of the first coding that has both. The time of a Condition is its onset (a
dateTime or the start of a Period), else ``recordedDate``; of a MedicationRequest ``authoredOn``; of a Procedure when it
was performed. What its own status calls an error, refuted or not done is no event. JSON files are read whole, NDJSON by
line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from site_agent.training.errors import DatasetMalformedError, DatasetMissingError
from site_agent.training.timelines.rows import (
    CellError,
    Event,
    Person,
    Row,
    RowFault,
    RowFaultKind,
    RowOrFault,
    instant_from_cell,
    is_absent,
    sex_from_cell,
    text_from_cell,
)

Resource = Mapping[str, object]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SUFFIXES = frozenset({".json", ".ndjson"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRule:
    """Where a resource says what, and when.

    Attributes:
        concept: the element that holds the CodeableConcept.
        times: elements in the order of preference; one that ends in ``.start`` is that of a Period.
        status: the element that may say that it never was, and whether that is a CodeableConcept.
        void: codes of it that mean so.
    """

    concept: str
    times: tuple[str, ...]
    status: str
    void: frozenset[str]


RULES: Mapping[str, ResourceRule] = {
    "Condition": ResourceRule(
        concept="code",
        times=("onsetDateTime", "onsetPeriod.start", "recordedDate"),
        status="verificationStatus",
        void=frozenset({"entered-in-error", "refuted"}),
    ),
    "MedicationRequest": ResourceRule(
        concept="medicationCodeableConcept",
        times=("authoredOn",),
        status="status",
        void=frozenset({"entered-in-error", "cancelled", "draft"}),
    ),
    "Procedure": ResourceRule(
        concept="code",
        times=("performedDateTime", "performedPeriod.start"),
        status="status",
        void=frozenset({"entered-in-error", "not-done", "preparation"}),
    ),
}


def fhir_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the JSON and NDJSON files of a folder in the order of their names.

    Raises:
        DatasetMissingError: there is none.
    """
    if path.is_file():
        return (path,)
    found = sorted(item for item in path.glob("*") if item.suffix.lower() in _SUFFIXES and item.is_file())
    if not found:
        raise DatasetMissingError("the dataset holds no JSON or NDJSON file", reason="FileNotFoundError")
    return tuple(found)


def iter_fhir(path: Path) -> Iterator[RowOrFault]:
    """Every event and person of the bundles, or the first fault of its resource. ``place`` is the entry or line.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetMalformedError: a file is no JSON.
    """
    for file in fhir_files(path):
        for place, resource in _iter_resources(file):
            if isinstance(resource, RowFault):
                yield resource
                continue
            try:
                row = _row(resource, file.name, place)
            except CellError as error:
                yield RowFault(file=file.name, place=place, field=error.field, kind=error.kind)
                continue
            if row is not None:
                yield row


def _iter_resources(path: Path) -> Iterator[tuple[int, Resource | RowFault]]:
    try:
        if path.suffix.lower() == ".ndjson":
            with path.open("rb") as file:
                for place, line in enumerate(file, start=1):
                    if line.strip(_BYTE_ORDER_MARK + b" \t\r\n"):
                        yield place, _resource_from_line(line, path.name, place)
            return
        document: object = json.loads(path.read_bytes().removeprefix(_BYTE_ORDER_MARK))
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    except (ValueError, RecursionError):
        # The parser's own error would quote the file.
        raise DatasetMalformedError("a file is no JSON", file=path.name) from None
    yield from _entries(document, path.name)


def _resource_from_line(line: bytes, file: str, place: int) -> Resource | RowFault:
    kind = RowFaultKind.NOT_JSON
    try:
        value: object = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode())
    except UnicodeDecodeError:
        kind = RowFaultKind.NOT_UTF_8
    except (ValueError, RecursionError):
        pass
    else:
        if isinstance(value, dict):
            return value
        kind = RowFaultKind.NOT_AN_OBJECT
    return RowFault(file=file, place=place, field=None, kind=kind)


def _entries(document: object, file: str) -> Iterator[tuple[int, Resource | RowFault]]:
    """The entries of a bundle; a resource by itself counts as a bundle of one."""
    if not isinstance(document, dict):
        raise DatasetMalformedError("a file holds no FHIR resource", file=file)
    if document.get("resourceType") != "Bundle":
        yield 1, document
        return
    entries = document.get("entry", [])
    if not isinstance(entries, list):
        raise DatasetMalformedError("a bundle's entry is no list", file=file, field="entry")
    for place, entry in enumerate(entries, start=1):
        resource = entry.get("resource") if isinstance(entry, dict) else None
        if isinstance(resource, dict):
            full_url = entry.get("fullUrl")
            yield place, resource if full_url is None else {**resource, _FULL_URL: full_url}
        else:
            yield place, RowFault(file=file, place=place, field="resource", kind=RowFaultKind.NOT_AN_OBJECT)


_FULL_URL = "_fullUrl"
"""Where the entry's address is kept beside its resource: references inside a bundle may use it."""


def _row(resource: Resource, file: str, place: int) -> Row | None:
    kind = resource.get("resourceType")
    if kind == "Patient":
        person = Person(
            birth_day=_birth_day(resource),
            sex=sex_from_cell(resource.get("gender"), "gender"),
        )
        if person.is_empty:
            return None
        return Row(patient_id=_own_id(resource), file=file, place=place, person=person)
    rule = RULES.get(kind) if isinstance(kind, str) else None
    if rule is None or _is_void(resource, rule):
        return None
    day, second = _instant(resource, rule)
    event = Event(day=day, second=second, source=str(kind), code=_code(resource, rule))
    return Row(patient_id=_subject(resource), file=file, place=place, event=event)


def _birth_day(resource: Resource) -> int | None:
    value = resource.get("birthDate")
    return None if is_absent(value) else instant_from_cell(value, "birthDate")[0]


def _own_id(resource: Resource) -> str:
    """A patient's key: its address where that is a URN, for then events refer to it by that; else its id."""
    full_url = resource.get(_FULL_URL)
    if isinstance(full_url, str) and full_url.startswith("urn:"):
        return text_from_cell(full_url, "fullUrl")
    return text_from_cell(resource.get("id"), "id")


def _subject(resource: Resource) -> str:
    """The key of the patient that ``subject.reference`` names: a URN as it is, else the last part of the address."""
    subject = resource.get("subject")
    reference = subject.get("reference") if isinstance(subject, dict) else None
    text = text_from_cell(reference, "subject.reference")
    if text.startswith("urn:"):
        return text
    parts = text.split("/_history/", 1)[0].split("/")
    if len(parts) < 2 or parts[-2] != "Patient" or not parts[-1]:
        raise CellError(RowFaultKind.NOT_RESOLVED, "subject.reference")
    return parts[-1]


def _is_void(resource: Resource, rule: ResourceRule) -> bool:
    """Whether the status says that it never was; one that is no text may not be taken for one that says nothing."""
    value = resource.get(rule.status)
    if isinstance(value, dict):
        codings = value.get("coding")
        codes = [
            coding.get("code") for coding in (codings if isinstance(codings, list) else ()) if isinstance(coding, dict)
        ]
    else:
        codes = [value]
    if not all(code is None or isinstance(code, str) for code in codes):
        raise CellError(RowFaultKind.NOT_TEXT, rule.status)
    return any(code in rule.void for code in codes)


def _instant(resource: Resource, rule: ResourceRule) -> tuple[int, int]:
    for element in rule.times:
        name, _, part = element.partition(".")
        value = resource.get(name)
        if part:
            value = value.get(part) if isinstance(value, dict) else None
        if not is_absent(value):
            return instant_from_cell(value, element)
    raise CellError(RowFaultKind.NO_DATE, rule.times[0])


def _code(resource: Resource, rule: ResourceRule) -> str:
    concept = resource.get(rule.concept)
    if concept is None and rule.concept == "medicationCodeableConcept" and "medicationReference" in resource:
        raise CellError(RowFaultKind.NOT_RESOLVED, "medicationReference")
    codings = concept.get("coding") if isinstance(concept, dict) else None
    for coding in codings if isinstance(codings, list) else []:
        if isinstance(coding, dict) and not is_absent(coding.get("system")) and not is_absent(coding.get("code")):
            system = text_from_cell(coding["system"], f"{rule.concept}.coding.system")
            return text_from_cell(f"{system}|{coding['code']}", f"{rule.concept}.coding.code")
    raise CellError(RowFaultKind.NO_CODE, rule.concept)
