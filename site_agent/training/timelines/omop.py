"""Tables of the OMOP Common Data Model (5.3 and 5.4): a folder of CSV or Parquet files with the standard columns.

Read are ``condition_occurrence``, ``drug_exposure`` and ``procedure_occurrence``, whichever are there, and ``person``
for sex and date of birth. A code is the concept's identifier as decimal text, its source the table. Concept 0 says that
a source code maps to no concept: such a row is no event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from site_agent.training.errors import DatasetMissingError
from site_agent.training.timelines.rows import (
    CellError,
    Event,
    Person,
    Row,
    RowFault,
    RowFaultKind,
    RowOrFault,
    Sex,
    instant_from_cell,
    is_absent,
    text_from_cell,
)
from site_agent.training.timelines.tables import TableRow, find_table, iter_table


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTable:
    """Which columns of a table say what happened when. ``instant_column`` is optional in the model, and finer."""

    name: str
    concept_column: str
    date_column: str
    instant_column: str


EVENT_TABLES = (
    EventTable(
        name="condition_occurrence",
        concept_column="condition_concept_id",
        date_column="condition_start_date",
        instant_column="condition_start_datetime",
    ),
    EventTable(
        name="drug_exposure",
        concept_column="drug_concept_id",
        date_column="drug_exposure_start_date",
        instant_column="drug_exposure_start_datetime",
    ),
    EventTable(
        name="procedure_occurrence",
        concept_column="procedure_concept_id",
        date_column="procedure_date",
        instant_column="procedure_datetime",
    ),
)

_PERSON_OPTIONAL = ("gender_concept_id", "birth_datetime", "year_of_birth", "month_of_birth", "day_of_birth")
_SEX_OF_CONCEPT = {"8532": Sex.FEMALE, "8507": Sex.MALE, "8521": Sex.OTHER}
_NO_CONCEPT = "0"


def omop_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that are read, in the order in which they are.

    Raises:
        DatasetMissingError: there is no such folder, or none of the three event tables in it.
        DatasetMalformedError: a table is there twice.
    """
    if not folder.is_dir():
        raise DatasetMissingError("the dataset's folder cannot be read", reason="NotADirectoryError")
    found = [find_table(folder, table.name) for table in EVENT_TABLES]
    if not any(found):
        raise DatasetMissingError("the folder holds none of the tables of events", reason="FileNotFoundError")
    return tuple(path for path in (*found, find_table(folder, "person")) if path is not None)


def iter_omop(folder: Path) -> Iterator[RowOrFault]:
    """Every row of the tables that are there, or its first fault.

    Raises:
        DatasetMissingError, DatasetMalformedError: as ``omop_files`` and ``iter_table``.
    """
    tables = {table.name: table for table in EVENT_TABLES}
    for path in omop_files(folder):
        table = tables.get(path.stem.lower())
        yield from _iter_persons(path) if table is None else _iter_events(path, table)


def _iter_events(path: Path, table: EventTable) -> Iterator[RowOrFault]:
    required = ("person_id", table.concept_column, table.date_column)
    for row in iter_table(path, required=required, optional=(table.instant_column,)):
        if isinstance(row, RowFault):
            yield row
            continue
        try:
            read = _event_row(row, path.name, table)
        except CellError as error:
            yield RowFault(file=path.name, place=row.place, field=error.field, kind=error.kind)
            continue
        if read is not None:
            yield read


def _event_row(row: TableRow, file: str, table: EventTable) -> Row | None:
    cells = row.cells
    patient_id = _identifier(cells["person_id"], "person_id")
    code = _identifier(cells[table.concept_column], table.concept_column)
    if code == _NO_CONCEPT:
        return None
    day, second = instant_from_cell(cells[table.date_column], table.date_column)
    instant = cells.get(table.instant_column)
    if not is_absent(instant):
        # The date is what the model requires; an instant on another day contradicts it.
        finer_day, finer_second = instant_from_cell(instant, table.instant_column)
        if finer_day != day:
            raise CellError(RowFaultKind.CONTRADICTS, table.instant_column)
        second = finer_second
    return Row(
        patient_id=patient_id,
        file=file,
        place=row.place,
        event=Event(day=day, second=second, source=table.name, code=code),
    )


def _iter_persons(path: Path) -> Iterator[RowOrFault]:
    for row in iter_table(path, required=("person_id",), optional=_PERSON_OPTIONAL):
        if isinstance(row, RowFault):
            yield row
            continue
        try:
            person = Person(birth_day=_birth_day(row), sex=_sex(row))
            patient_id = _identifier(row.cells["person_id"], "person_id")
        except CellError as error:
            yield RowFault(file=path.name, place=row.place, field=error.field, kind=error.kind)
            continue
        if not person.is_empty:
            yield Row(patient_id=patient_id, file=path.name, place=row.place, person=person)


def _sex(row: TableRow) -> Sex | None:
    value = row.cells.get("gender_concept_id")
    return None if is_absent(value) else _SEX_OF_CONCEPT.get(_identifier(value, "gender_concept_id"))


def _birth_day(row: TableRow) -> int | None:
    """The day of birth; a missing month or day counts as the first, as a partial date does."""
    instant = row.cells.get("birth_datetime")
    if not is_absent(instant):
        return instant_from_cell(instant, "birth_datetime")[0]
    if is_absent(row.cells.get("year_of_birth")):
        return None
    parts = [_part(row, "year_of_birth"), _part(row, "month_of_birth"), _part(row, "day_of_birth")]
    try:
        return date(*parts).toordinal()
    except (ValueError, OverflowError):
        raise CellError(RowFaultKind.NOT_A_DATE, "year_of_birth") from None


def _part(row: TableRow, column: str) -> int:
    value = row.cells.get(column)
    return 1 if is_absent(value) else int(_identifier(value, column))


def _identifier(value: object, column: str) -> str:
    """A whole number as decimal text without leading zeros; exports write integers as ``123`` or ``123.0``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = text_from_cell(value, column).removesuffix(".0")
    if not (text.isascii() and text.isdigit()):
        raise CellError(RowFaultKind.NOT_A_NUMBER, column)
    return str(int(text))
