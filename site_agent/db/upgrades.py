"""Brings the tables of an earlier version up to this one's. Tables only grow: a table or a nullable column more.

So an upgrade needs no list of steps: what the classes have and the file lacks is added, and no row is changed. A
version that would need more than that (another meaning, a column that may not be empty) is not upgraded here, but by
its own code. Nothing is ever taken away, and a program before the upgrade refuses the file by its version.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect
from sqlalchemy.schema import CreateColumn

from site_agent.db.models import SiteTable

OLDEST_VERSION = 2
"""The first version whose files are upgraded; the ones before it were never released."""


def expand_tables(connection: Connection) -> None:
    """Add the tables and columns that the file lacks, inside the caller's transaction. Doing it again does nothing."""
    SiteTable.metadata.create_all(connection)
    found = inspect(connection)
    for table in SiteTable.metadata.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name in there:
                continue
            assert column.nullable, f"{table.name}.{column.name}: a column that is added later may be empty"
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
