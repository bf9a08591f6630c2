"""CSV as RFC 4180 has it: a comma, quotes where needed, a header. UTF-8; an empty cell is an absent value.

A quoted value may hold line ends, so that a row is not a line: rows are found by reading from the beginning, and read
again from the byte that each begins at.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

from site_agent.training.errors import DatasetChangedError, DatasetMalformedError
from site_agent.training.rows.jsonl import skip_byte_order_mark
from site_agent.training.rows.row import MAX_ROW_BYTES, Row, RowFault


class _TooLongError(Exception):
    """A row is longer than ``MAX_ROW_BYTES``: where it ends is not looked for, since a quote may be missing."""


class CsvFile:
    """A CSV file. Invariant: ``read`` is asked only after a whole ``look``, which reads the header."""

    is_all_text: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened."""
        self.path = path
        self._columns: tuple[str, ...] = ()

    def look(self, digest: hashlib._Hash) -> Iterator[Row]:
        """See ``RowFile``. After a row whose end cannot be found there are no further ones."""
        with self.path.open("rb") as file:
            source = _Lines(file, digest.update, place=skip_byte_order_mark(file, digest))
            rows = _reader(source)
            self._columns = _columns(rows)
            while True:
                number, place = source.n_lines + 1, source.place
                source.begin_row()
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except (_TooLongError, csv.Error, UnicodeDecodeError) as error:
                    yield Row(number=number, place=place, values=_fault(error))
                    break
                yield Row(number=number, place=place, values=self._values(cells))
            while rest := file.read(1 << 20):
                digest.update(rest)

    def read(self, place: int) -> Mapping[str, object]:
        """See ``RowFile``."""
        with self.path.open("rb") as file:
            file.seek(place)
            try:
                values = self._values(next(_reader(_Lines(file, lambda _: None, place=place))))
            except (StopIteration, _TooLongError, csv.Error, UnicodeDecodeError):
                values = RowFault.NOT_CSV
        if isinstance(values, RowFault):
            raise DatasetChangedError("the data file changed while it was used; register it again")
        return values

    def _values(self, cells: list[str]) -> Mapping[str, object] | RowFault:
        if not cells:
            return RowFault.BLANK
        if len(cells) != len(self._columns):
            return RowFault.OTHER_COLUMNS
        return {name: cell or None for name, cell in zip(self._columns, cells, strict=True)}


class _Lines:
    """The lines of a file as text; counts them, and knows the place behind the last one that was taken."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[bytes], None], *, place: int) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self.place = place
        self.n_lines = 0
        self._row_began = place

    def begin_row(self) -> None:
        self._row_began = self.place

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        room = MAX_ROW_BYTES - (self.place - self._row_began)
        line = self._file.readline(max(room, 0) + 1)
        if not line:
            raise StopIteration
        self._on_bytes(line)
        self.place += len(line)
        self.n_lines += 1
        if len(line) > room:
            raise _TooLongError
        return line.decode()


def _reader(lines: Iterator[str]) -> Iterator[list[str]]:
    # The module's own limit of 128 KiB a value is one of the process; a row's length is bounded by _Lines.
    csv.field_size_limit(MAX_ROW_BYTES + 1)
    return csv.reader(lines, strict=True)


def _columns(rows: Iterator[list[str]]) -> tuple[str, ...]:
    """The header's names. Safety: no error quotes one, for a file without a header begins with a record."""
    try:
        names = tuple(next(rows, []))
    except (_TooLongError, csv.Error, UnicodeDecodeError):
        raise DatasetMalformedError("the first line is no CSV header", record=1) from None
    if any(not name.strip() for name in names):
        raise DatasetMalformedError("a column of the CSV header has no name", record=1)
    if len(set(names)) != len(names):
        raise DatasetMalformedError("two columns of the CSV header have the same name", record=1)
    return names


def _fault(error: Exception) -> RowFault:
    if isinstance(error, _TooLongError):
        return RowFault.TOO_LONG
    return RowFault.NOT_UTF_8 if isinstance(error, UnicodeDecodeError) else RowFault.NOT_CSV
