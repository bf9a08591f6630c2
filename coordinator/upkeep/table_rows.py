"""Rows as lines of JSON, the same for every database: a backup of SQLite restores into PostgreSQL, and the reverse.

Text, numbers, truth and null are themselves; bytes are ``{"bytes": base 64}``, an instant ``{"at": ISO 8601}``, and a
document ``{"json": ...}``. The columns' types decide, not the database.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import datetime

from sqlalchemy import JSON, Connection, Table, func, insert, select, text

from coordinator.db.models import Base
from coordinator.upkeep.errors import BackupInvalidError

_BATCH = 500
_NOT_BACKED_UP = frozenset({"leases", "commit_markers", "schema_floor"})


def backed_up_tables() -> tuple[Table, ...]:
    """All tables, each after those that it refers to; but not those about processes, connections and the schema."""
    return tuple(table for table in Base.metadata.sorted_tables if table.name not in _NOT_BACKED_UP)


def iter_lines(connection: Connection, table: Table) -> Iterator[bytes]:
    """The rows in the order of the key, a line each."""
    query = select(table).order_by(*table.primary_key.columns)
    documents = {column.name for column in table.columns if isinstance(column.type, JSON)}
    result = connection.execution_options(yield_per=_BATCH).execute(query)
    for row in result.mappings():
        values = {str(name): _plain(value, is_document=name in documents) for name, value in row.items()}
        yield json.dumps(values, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def insert_lines(connection: Connection, table: Table, lines: Iterator[bytes]) -> int:
    """Put the rows into an empty table; returns how many. A column that the lines do not have stays null.

    Raises:
        BackupInvalidError: a line is no row of this table.
    """
    n_rows = 0
    batch: list[dict[str, object]] = []
    for line in lines:
        batch.append(row_from_line(line, table))
        n_rows += 1
        if len(batch) == _BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    _raise_counter(connection, table)
    return n_rows


def row_from_line(line: bytes, table: Table) -> dict[str, object]:
    """A row's values by column.

    Raises:
        BackupInvalidError: the line is no row of this table.
    """
    try:
        document = json.loads(line)
        values = {name: _value(value) for name, value in document.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupInvalidError("a line of the backup is no row", table=table.name) from error
    if not set(values) <= set(table.columns.keys()):
        raise BackupInvalidError("the backup has a column that this version does not know", table=table.name)
    return values


def _plain(value: object, *, is_document: bool) -> object:
    if is_document and value is not None:
        return {"json": value}
    match value:
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"at": value.isoformat()}
        case _:
            return value


def _value(plain: object) -> object:
    if not isinstance(plain, Mapping):
        return plain
    ((kind, content),) = plain.items()
    match kind:
        case "json":
            return content
        case "bytes":
            return base64.b64decode(content, validate=True)
        case "at":
            return datetime.fromisoformat(content)
        case _:
            raise ValueError(kind)


def _raise_counter(connection: Connection, table: Table) -> None:
    """PostgreSQL counts beside the column: after rows with numbers of their own, it must go on above them."""
    column = table.autoincrement_column
    if connection.dialect.name != "postgresql" or column is None:
        return
    highest = connection.scalar(select(func.max(column)))
    if highest is not None:
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence(:table, :column), :highest)"),
            {"table": table.name, "column": column.name, "highest": highest},
        )
