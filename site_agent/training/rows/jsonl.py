"""JSONL: one JSON object a line, in UTF-8, with or without a byte order mark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

from site_agent.training.errors import DatasetChangedError
from site_agent.training.rows.row import MAX_ROW_BYTES, Row, RowFault

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonlFile:
    """A JSONL file. A line feed at the end of the last line begins no further one."""

    is_all_text: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened."""
        self.path = path

    def look(self, digest: hashlib._Hash) -> Iterator[Row]:
        """See ``RowFile``."""
        with self.path.open("rb") as file:
            place = skip_byte_order_mark(file, digest)
            number = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                digest.update(line)
                n_bytes = len(line)
                is_too_long = len(line.removesuffix(b"\n")) > MAX_ROW_BYTES
                while is_too_long and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                    if not line:
                        break
                    digest.update(line)
                    n_bytes += len(line)
                values = RowFault.TOO_LONG if is_too_long else _values_from_line(line.removesuffix(b"\n"))
                yield Row(number=number, place=place, values=values)
                place += n_bytes

    def read(self, place: int) -> Mapping[str, object]:
        """See ``RowFile``."""
        with self.path.open("rb") as file:
            file.seek(place)
            values = _values_from_line(file.readline(MAX_ROW_BYTES + 1).removesuffix(b"\n"))
        if isinstance(values, RowFault):
            raise DatasetChangedError("the data file changed while it was used; register it again")
        return values


def skip_byte_order_mark(file: BinaryIO, digest: hashlib._Hash) -> int:
    """Go behind a byte order mark, where there is one; its length in bytes."""
    if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
        digest.update(BYTE_ORDER_MARK)
        return len(BYTE_ORDER_MARK)
    file.seek(0)
    return 0


def _values_from_line(line: bytes) -> Mapping[str, object] | RowFault:
    if not line.strip():
        return RowFault.BLANK
    try:
        value: object = json.loads(line.decode())
    except UnicodeDecodeError:
        return RowFault.NOT_UTF_8
    except (ValueError, RecursionError):
        # The parser's own error would quote the line.
        return RowFault.NOT_JSON
    return value if isinstance(value, dict) else RowFault.NOT_AN_OBJECT
