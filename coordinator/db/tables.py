"""The tables behind the mapped classes: for statements that a round asks for each message, and that need no objects."""

from __future__ import annotations

from sqlalchemy import Table

from coordinator.db.models import Base


def table_of(model: type[Base]) -> Table:
    """The table of a mapped class."""
    table = model.__table__
    assert isinstance(table, Table), "every class of this schema is one table"
    return table
