"""What every format gives: rows with a number for people and a place for machines, or how a row cannot be one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

MAX_ROW_BYTES = 16 << 20
"""A longer row is a fault: it is never in memory whole."""


class RowFault(StrEnum):
    """How a whole row can be wrong. A row of JSONL is a line."""

    TOO_LONG = "line-too-long"
    BLANK = "blank-line"
    NOT_UTF_8 = "not-utf-8"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    NOT_CSV = "not-csv"
    OTHER_COLUMNS = "other-columns-than-the-header"


ROW_FAULTS: Mapping[RowFault, str] = {
    RowFault.TOO_LONG: "a record is longer than 16 MiB",
    RowFault.BLANK: "a line is blank",
    RowFault.NOT_UTF_8: "a record is not UTF-8 text",
    RowFault.NOT_JSON: "a record is not JSON",
    RowFault.NOT_AN_OBJECT: "a record is not a JSON object",
    RowFault.NOT_CSV: "a record is not CSV",
    RowFault.OTHER_COLUMNS: "a record has more or fewer columns than the header",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """One row. Safety: its repr shows nothing of its values.

    Attributes:
        number: for people, from 1: the line that it begins on, or in Parquet its number.
        place: for ``RowFile.read``: the byte that it begins at, or in Parquet its number from 0.
        values: its fields, or how it cannot be read.
    """

    number: int
    place: int
    values: Mapping[str, object] | RowFault

    def __repr__(self) -> str:
        """The number alone."""
        return f"Row({self.number})"


class RowFile(Protocol):
    """A file of rows.

    Attributes:
        is_all_text: whether the format knows no value but texts.
        path: where it lies.
    """

    is_all_text: ClassVar[bool]
    path: Path

    def look(self, digest: hashlib._Hash) -> Iterator[Row]:
        """Every row in the file's order. Every byte of the file goes through ``digest``.

        Raises:
            OSError: the file cannot be read.
            DatasetMalformedError: the file as a whole is not of its format.
        """
        ...

    def read(self, place: int) -> Mapping[str, object]:
        """The fields of one row that ``look`` gave.

        Raises:
            DatasetChangedError: there is no such row any more.
            OSError: the file cannot be read.
        """
        ...
