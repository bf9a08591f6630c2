"""One coded event of one patient, read strictly: what every reader yields, and how a cell becomes a value.

Safety: a fault is a file, a place, a field and a closed code. What stands there is never kept or told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from site_agent.training.errors import CodeWithoutDateError, DatasetMalformedError

MAX_TEXT = 200
"""Characters of a patient's key, a code or a source; longer is a fault."""

_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2}))?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_INSTANT = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2}):(\d{2})(?::(\d{2})(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?")
_SECONDS_A_DAY = 86_400


class RowFaultKind(StrEnum):
    """How a row can be wrong."""

    MISSING = "missing"
    BLANK = "blank"
    NOT_TEXT = "not-text"
    TOO_LONG = "too-long"
    LINE_BREAK = "line-break"
    NO_DATE = "code-without-date"
    NOT_A_DATE = "not-a-date"
    NOT_A_SEX = "not-a-sex"
    NOT_A_NUMBER = "not-a-whole-number"
    NOT_UTF_8 = "not-utf-8"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    WRONG_WIDTH = "wrong-number-of-fields"
    NO_CODE = "no-code"
    NOT_RESOLVED = "reference-not-resolved"
    CONTRADICTS = "contradicts-an-earlier-row"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """One fault. ``place`` is a line of a text file, a row of a table or an entry of a bundle, from 1."""

    file: str
    place: int
    field: str | None
    kind: RowFaultKind

    def to_error(self) -> DatasetMalformedError:
        """As what stops a job."""
        facts: dict[str, str | int] = {"file": self.file, "record": self.place, "fault": self.kind.value}
        if self.field is not None:
            facts["field"] = self.field
        if self.kind is RowFaultKind.NO_DATE:
            return CodeWithoutDateError("a code has no date", **facts)
        return DatasetMalformedError("a row is not what its format says", **facts)


class CellError(ValueError):
    """A cell cannot be read. Invariant: it holds the kind of the fault and nothing of the cell."""

    def __init__(self, kind: RowFaultKind, field: str | None) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.field = field


class Sex(StrEnum):
    """As FHIR's administrative gender has it, less its code for not known: that is simply absent."""

    FEMALE = "female"
    MALE = "male"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True, order=True, repr=False)
class Event:
    """One code at one time. Its order is that of a timeline: time, then source and code, so that ties have one order.

    Attributes:
        day: days since 0001-01-01 (which is 1), of the wall clock at the hospital.
        second: of that day; 0 where the time of day is not known.
        source: the table or resource it is from; may be empty.
        code: as the dataset writes it.
    """

    day: int
    second: int
    source: str
    code: str

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "Event(...)"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Person:
    """What is known of a patient beside the events. ``birth_day`` counts as ``Event.day``."""

    birth_day: int | None = None
    sex: Sex | None = None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "Person(...)"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self.birth_day is None and self.sex is None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """What one row says of one patient: an event, something of the person, or both. Safety: no repr."""

    patient_id: str
    file: str
    place: int
    event: Event | None = None
    person: Person | None = None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "Row(...)"


RowOrFault = Row | RowFault


def rows_or_raise(rows: Iterable[RowOrFault]) -> Iterator[Row]:
    """The rows, up to the first fault.

    Raises:
        CodeWithoutDateError: a code has no date.
        DatasetMalformedError: anything else is wrong with a row; the facts name file, place and field.
    """
    for row in rows:
        if isinstance(row, RowFault):
            raise row.to_error()
        yield row


def text_from_cell(value: object, field: str) -> str:
    """A text that stands for something: stripped, not blank, one line, at most ``MAX_TEXT`` characters.

    A whole number is read as its decimal digits, for that is what tables keep keys and codes as.

    Raises:
        CellError: it is none.
    """
    if value is None:
        raise CellError(RowFaultKind.MISSING, field)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise CellError(RowFaultKind.NOT_TEXT, field)
    text = value.strip()
    if not text:
        raise CellError(RowFaultKind.BLANK, field)
    if len(text) > MAX_TEXT:
        raise CellError(RowFaultKind.TOO_LONG, field)
    if not text.isprintable():
        # A code becomes a line of a vocabulary.
        raise CellError(RowFaultKind.LINE_BREAK, field)
    return text


def instant_from_cell(value: object, field: str) -> tuple[int, int]:
    """A time as (day, second of the day).

    Dates and times of ISO 8601: ``2019``, ``2019-04``, ``2019-04-30``, ``2019-04-30T13:05``, with seconds, a fraction,
    and an offset. A year or month alone stands for its first day, before everything else on that day. An offset is
    passed over: what counts is the clock on the hospital's wall, as it was written down.

    Raises:
        CellError: the cell is empty (``NO_DATE``) or holds something else (``NOT_A_DATE``).
    """
    if isinstance(value, datetime):
        return value.toordinal(), value.hour * 3600 + value.minute * 60 + value.second
    if isinstance(value, date):
        return value.toordinal(), 0
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        raise CellError(RowFaultKind.NO_DATE, field)
    if not isinstance(text, str):
        raise CellError(RowFaultKind.NOT_A_DATE, field)
    try:
        return _instant_from_text(text)
    except ValueError:
        raise CellError(RowFaultKind.NOT_A_DATE, field) from None


def _instant_from_text(text: str) -> tuple[int, int]:
    partial = _PARTIAL.fullmatch(text)
    if partial is not None:
        return date(int(partial[1]), int(partial[2] or 1), 1).toordinal(), 0
    if _DAY.fullmatch(text) is not None:
        return date.fromisoformat(text).toordinal(), 0
    instant = _INSTANT.fullmatch(text)
    if instant is None:
        raise ValueError
    hour, minute, second = int(instant[2]), int(instant[3]), int(instant[4] or 0)
    # A leap second counts as the last second of its day.
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError
    day = date.fromisoformat(instant[1]).toordinal()
    return day, min(hour * 3600 + minute * 60 + second, _SECONDS_A_DAY - 1)


def is_absent(value: object) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


_SEXES = {
    "f": Sex.FEMALE,
    "female": Sex.FEMALE,
    "m": Sex.MALE,
    "male": Sex.MALE,
    "o": Sex.OTHER,
    "other": Sex.OTHER,
}
_UNKNOWN_SEX = frozenset({"u", "unknown"})


def sex_from_cell(value: object, field: str) -> Sex | None:
    """A sex: female, male, other (or f, m, o), whatever the case; None where it is absent or unknown.

    Raises:
        CellError: it is something else.
    """
    if is_absent(value):
        return None
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in _UNKNOWN_SEX:
        return None
    if text not in _SEXES:
        raise CellError(RowFaultKind.NOT_A_SEX, field)
    return _SEXES[text]
