"""Which blobs the rows name. A blob is shared by all that name its digest, so it may go only when nobody does.

Invariant: every column that names a blob is called ``...blob_sha256...``; a new one is found here by its name.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Column, ColumnElement, select
from sqlalchemy.orm import Session

from coordinator.db.models import Base, Exchange, Upload

_MARK = "blob_sha256"


def reference_columns() -> tuple[Column[str], ...]:
    """Every column that names a blob."""
    return tuple(column for table in Base.metadata.sorted_tables for column in table.columns if _MARK in column.name)


def named_blobs(session: Session, among: Collection[str] | None = None) -> frozenset[str]:
    """The digests that some row names; of ``among`` only, where given. Scrubbed uploads and scrubbed sums name none."""
    found: set[str] = set()
    for column in reference_columns():
        conditions: list[ColumnElement[bool]] = [column.is_not(None)]
        if column.table is Upload.__table__:
            conditions.append(Upload.scrubbed_at.is_(None))
        if column.table is Exchange.__table__:
            conditions.append(Exchange.sum_bytes.is_not(None))
        if among is not None:
            conditions.append(column.in_(list(among)))
        found.update(session.scalars(select(column).where(*conditions).distinct()))
    return frozenset(found)
