"""Rows of a CSV or Parquet table, one after the other, each a mapping of column to cell with its place in the file.

Never holds more than a batch of rows. Column names are compared in lower case. pyarrow is imported only for Parquet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from site_agent.training.errors import DatasetMalformedError, DatasetMissingError, LibraryMissingError
from site_agent.training.timelines.rows import RowFault, RowFaultKind

if TYPE_CHECKING:
    from pyarrow import Array

_BATCH_ROWS = 16_384
_MAX_CELL = 1 << 20
"""Characters of a CSV cell; a longer one is an unclosed quote."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TableRow:
    """The cells of one row by column, of the columns that were asked for. Safety: no repr."""

    place: int
    cells: Mapping[str, object]

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "TableRow(...)"


def iter_table(path: Path, *, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[TableRow | RowFault]:
    """The rows of a table; the suffix says of what kind it is: ``.csv`` or ``.parquet``.

    Args:
        path: of the file.
        required: columns that must be there, in lower case.
        optional: columns that are read where they are there.

    Yields:
        Rows, and a fault for one that cannot be taken apart. ``place`` is the line on which a CSV row ends (the
        header is line 1), or the row of a Parquet table from 1.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetMalformedError: a required column is missing, a column is there twice, or the file is no table.
        LibraryMissingError: it is a Parquet table, and pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        yield from _iter_parquet(path, required=required, optional=optional)
    else:
        yield from _iter_csv(path, required=required, optional=optional)


def find_table(folder: Path, name: str) -> Path | None:
    """The file of a table in a folder: ``name.csv`` or ``name.parquet`` in any case; None where there is neither.

    Raises:
        DatasetMalformedError: both are there, and nobody said which counts.
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if path.stem.lower() == name and path.suffix.lower() in {".csv", ".parquet"} and path.is_file()
    )
    if len(found) > 1:
        raise DatasetMalformedError("a table of the dataset is there more than once", file=name)
    return found[0] if found else None


def _columns(header: Sequence[str], path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Where each wanted column stands."""
    names = [name.strip().lower() for name in header]
    columns: dict[str, int] = {}
    for wanted in (*required, *optional):
        if names.count(wanted) > 1:
            raise DatasetMalformedError("a column of a table is there twice", file=path.name, record=1, field=wanted)
        if wanted in names:
            columns[wanted] = names.index(wanted)
        elif wanted in required:
            raise DatasetMalformedError("a column of a table is missing", file=path.name, record=1, field=wanted)
    return columns


def _iter_csv(path: Path, *, required: Sequence[str], optional: Sequence[str]) -> Iterator[TableRow | RowFault]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _iter_csv_lines(file, path, required=required, optional=optional)
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    except UnicodeDecodeError:
        raise DatasetMalformedError("a table is not UTF-8 text", file=path.name) from None


def _iter_csv_lines(
    file: TextIO, path: Path, *, required: Sequence[str], optional: Sequence[str]
) -> Iterator[TableRow | RowFault]:
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise DatasetMalformedError("a table has no header", file=path.name, record=1)
        columns = _columns(header, path, required, optional)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                yield RowFault(file=path.name, place=reader.line_num, field=None, kind=RowFaultKind.WRONG_WIDTH)
                continue
            yield TableRow(place=reader.line_num, cells={name: cells[index] for name, index in columns.items()})
    except csv.Error:
        # Its text may quote the line.
        raise DatasetMalformedError("a table is no CSV", file=path.name, record=reader.line_num) from None


def _iter_parquet(path: Path, *, required: Sequence[str], optional: Sequence[str]) -> Iterator[TableRow | RowFault]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise LibraryMissingError("Parquet files need the library pyarrow", extra="parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow.names, path, required, optional)
            names = [file.schema_arrow.names[index] for index in columns.values()]
            place = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
                values = {
                    wanted: _values(batch.column(name), path.name, wanted)
                    for wanted, name in zip(columns, names, strict=True)
                }
                for index in range(batch.num_rows):
                    place += 1
                    yield TableRow(place=place, cells={wanted: values[wanted][index] for wanted in columns})
    except FileNotFoundError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    except pa.ArrowException:
        raise DatasetMalformedError("a file is no Parquet table", file=path.name) from None
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error


def _values(column: Array, file: str, field: str) -> list[object]:
    """A part of a column as Python's own values."""
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):
        # Text that is not UTF-8, or a time that Python has not, such as parts of a microsecond. It may be quoted.
        raise DatasetMalformedError("a column of a table cannot be read", file=file, field=field) from None
    return values
