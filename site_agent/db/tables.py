"""The tables behind the mapped classes: for statements that every step of a round says, and that need no objects."""

from __future__ import annotations

from sqlalchemy import Table

from site_agent.db.models import SiteTable


def table_of(model: type[SiteTable]) -> Table:
    """The table of a mapped class."""
    table = model.__table__
    assert isinstance(table, Table), "every class of this schema is one table"
    return table
