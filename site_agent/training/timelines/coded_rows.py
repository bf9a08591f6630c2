"""Rows (patient, time, code, source), in CSV or Parquet.

Columns, in any order and case: ``patient_id``, ``time``, ``code``; optional ``source``, ``birth_date``, ``sex``. What a
row says of the person must agree with what the patient's other rows say. The column of the patient may have another
name. Every row is one event.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from site_agent.training.timelines.rows import (
    CellError,
    Event,
    Person,
    Row,
    RowFault,
    RowOrFault,
    instant_from_cell,
    is_absent,
    sex_from_cell,
    text_from_cell,
)
from site_agent.training.timelines.tables import TableRow, iter_table

PATIENT_COLUMN = "patient_id"


def iter_coded_rows(path: Path, *, patient_field: str = PATIENT_COLUMN) -> Iterator[RowOrFault]:
    """Every row of the file, or its first fault.

    Raises:
        DatasetMissingError, DatasetMalformedError: as ``iter_table``.
    """
    patient_column = patient_field.lower()
    required, optional = (patient_column, "time", "code"), ("source", "birth_date", "sex")
    for row in iter_table(path, required=required, optional=optional):
        if isinstance(row, RowFault):
            yield row
            continue
        try:
            yield _row(row, path.name, patient_column)
        except CellError as error:
            yield RowFault(file=path.name, place=row.place, field=error.field, kind=error.kind)


def _row(row: TableRow, file: str, patient_column: str) -> Row:
    cells = row.cells
    patient_id = text_from_cell(cells[patient_column], patient_column)
    code = text_from_cell(cells["code"], "code")
    day, second = instant_from_cell(cells["time"], "time")
    source = "" if is_absent(cells.get("source")) else text_from_cell(cells["source"], "source")
    birth = cells.get("birth_date")
    person = Person(
        birth_day=None if is_absent(birth) else instant_from_cell(birth, "birth_date")[0],
        sex=sex_from_cell(cells.get("sex"), "sex"),
    )
    return Row(
        patient_id=patient_id,
        file=file,
        place=row.place,
        event=Event(day=day, second=second, source=source, code=code),
        person=None if person.is_empty else person,
    )
