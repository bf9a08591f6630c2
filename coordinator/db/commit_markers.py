"""Whether a transaction was committed whose COMMIT was not answered.

A connection that breaks while COMMIT is under way leaves its owner without an answer: the server may have committed,
may not have, or may be about to. So each transaction that writes leaves a marker of its own with its other rows, and
after a break the marker is asked for by inserting it again. That waits for a transaction which is still at work; where
the marker is there, it was committed; where it is not, the second insertion stands as a tombstone and the first can
never be committed after it. The server's own transaction numbers would not do: after a crash they are given out again.
"""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert
from sqlalchemy.orm import Session

from coordinator.db.models import CommitMarker


def new_marker() -> str:
    """A name that no other transaction has."""
    return secrets.token_hex(16)


def leave_marker(connection: Connection, marker: str) -> None:
    """Insert the marker; a unique violation says that the transaction of this name was committed."""
    connection.execute(insert(CommitMarker.__table__).values(marker=marker, at=func.now()))  # type: ignore[arg-type]


def forget_markers(session: Session, *, before: datetime) -> int:
    """Delete markers that nobody can ask for any more; returns how many."""
    result = session.execute(delete(CommitMarker).where(CommitMarker.at < before))
    return int(getattr(result, "rowcount", 0))
