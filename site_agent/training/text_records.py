"""Records of the tasks on text, and what each task needs of a row. Knows neither files nor tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from site_agent.training.errors import DatasetMalformedError


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TextRecord:
    """What all records have. Safety: its repr shows nothing of it. Invariant: no text is blank."""

    record_id: str
    patient_id: str | None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return f"{type(self).__name__}(...)"

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        return self.record_id if self.patient_id is None else self.patient_id


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PromptRecord(TextRecord):
    """A question and its answer."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PreferenceRecord(TextRecord):
    """A question and two answers, of which the first is the better one."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlainTextRecord(TextRecord):
    """A text."""

    text: str


SomeRecord_co = TypeVar("SomeRecord_co", bound=TextRecord, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordShape(Generic[SomeRecord_co]):
    """What a task needs of a row: a text under each of these names, beside ``id`` and the patient's field.

    Attributes:
        make: takes ``record_id``, ``patient_id`` and the texts by their names.
    """

    texts: tuple[str, ...]
    make: Callable[..., SomeRecord_co]

    def record_from_row(self, values: Mapping[str, object], number: int, patient_field: str) -> SomeRecord_co:
        """Read one row.

        Raises:
            DatasetMalformedError: a field is missing, blank or no text; the facts name the row and the field.
        """
        # In the order in which an inspection tells them, so that both name the same field of a record with two faults.
        record_id = text_of(values.get("id"), "id", number)
        texts = {name: text_of(values.get(name), name, number) for name in self.texts}
        patient_id = values.get(patient_field)
        patient = None if patient_id is None else text_of(patient_id, patient_field, number)
        return self.make(record_id=record_id, patient_id=patient, **texts)


PROMPTS = RecordShape(texts=("prompt", "completion"), make=PromptRecord)
PREFERENCES = RecordShape(texts=("prompt", "chosen", "rejected"), make=PreferenceRecord)
PLAIN_TEXTS = RecordShape(texts=("text",), make=PlainTextRecord)


def text_of(value: object, field: str, number: int) -> str:
    """A field that must hold a text that is not blank.

    Raises:
        DatasetMalformedError: it does not; the facts name the row and the field, and nothing of the value.
    """
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
