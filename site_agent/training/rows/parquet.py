"""Parquet, by pyarrow (the extra ``parquet``). A row is read with its row group, of which the last one is kept.

Drawing rows at random from a file of many row groups reads a group again and again: such a file is better written with
small row groups. Memory is bounded by the largest row group, not by the file.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from site_agent.training.errors import DatasetChangedError, DatasetMalformedError, LibraryMissingError
from site_agent.training.rows.row import Row

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile as ArrowFile

_LOOKED_AT = 256
"""How many rows are taken out of a row group at a time."""


class ParquetFile:
    """A Parquet file."""

    is_all_text: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened."""
        self.path = path
        self._group: tuple[int, Table] | None = None
        self._starts: tuple[int, ...] = ()

    def look(self, digest: hashlib._Hash) -> Iterator[Row]:
        """See ``RowFile``."""
        with self.path.open("rb") as file:
            while content := file.read(1 << 20):
                digest.update(content)
        if self.path.stat().st_size == 0:
            return
        with self._open() as arrow:
            number = 0
            for batch in _batches(arrow):
                for values in batch:
                    yield Row(number=number + 1, place=number, values=values)
                    number += 1

    def read(self, place: int) -> Mapping[str, object]:
        """See ``RowFile``."""
        from pyarrow import ArrowException

        try:
            group, row = self._row_of(place)
            return _values(group.slice(row, 1).to_pylist()[0])
        except (ArrowException, DatasetMalformedError, IndexError):
            raise DatasetChangedError("the data file changed while it was used; register it again") from None

    def _row_of(self, place: int) -> tuple[Table, int]:
        """The row group that holds a row, and the row's number in it."""
        with self._open() as arrow:
            if not self._starts:
                sizes = (arrow.metadata.row_group(number).num_rows for number in range(arrow.num_row_groups))
                self._starts = (0, *accumulate(sizes))
            number = bisect_right(self._starts, place) - 1
            if self._group is None or self._group[0] != number:
                # Let go of the last one first: only one is in memory.
                self._group = None
                self._group = (number, arrow.read_row_group(number))
        return self._group[1], place - self._starts[number]

    def _open(self) -> ArrowFile:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile as ArrowFile
        except ImportError:
            raise LibraryMissingError("Parquet files need the library pyarrow", extra="parquet") from None
        try:
            arrow = ArrowFile(self.path, memory_map=False, pre_buffer=False)
        except ArrowException:
            # Its own error may quote the file.
            raise DatasetMalformedError("the file is no Parquet file") from None
        names = arrow.schema_arrow.names
        if len(set(names)) != len(names):
            raise DatasetMalformedError("two columns of the Parquet file have the same name")
        return arrow


def _batches(arrow: ArrowFile) -> Iterator[list[Mapping[str, object]]]:
    from pyarrow import ArrowException

    try:
        for batch in arrow.iter_batches(batch_size=_LOOKED_AT, use_threads=False):
            yield [_values(row) for row in batch.to_pylist()]
    except (ArrowException, ValueError, OverflowError):
        # Beside damage: text that is not UTF-8, and times that Python has not, such as parts of a microsecond.
        raise DatasetMalformedError("a part of the Parquet file cannot be read") from None


def _values(row: Mapping[str, object]) -> Mapping[str, object]:
    """A row's values as JSON has them: a date is a text."""
    return {name: value.isoformat() if isinstance(value, date | datetime) else value for name, value in row.items()}
