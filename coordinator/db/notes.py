"""What a transaction did, told once it is committed: for counters, never for evidence.

``fn`` of ``run_tx`` may run again, so it counts nothing itself. It leaves notes with its session; they are thrown away
with a try that failed, and handed on after the COMMIT, in the thread that asked for the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy.orm import Session

T = TypeVar("T")

_NOTES = "wardround-notes"


class TransactionWatch(Protocol):
    """Who is told of transactions. Both methods return at once and raise nothing."""

    def committed(self, notes: Sequence[object]) -> None:
        """A transaction is committed; its notes, in order."""
        ...

    def failed(self, code: str) -> None:
        """One could not be kept, for this reason: nothing of it happened."""
        ...


class NobodyWatches:
    """Where nobody counts."""

    def committed(self, notes: Sequence[object]) -> None:
        """Let it be."""

    def failed(self, code: str) -> None:
        """Let it be."""


def note(session: Session, fact: object) -> None:
    """Leave a note with the session of a transaction; nothing happens in a session that nobody watches."""
    notes = session.info.get(_NOTES)
    if notes is not None:
        notes.append(fact)


def noting(fn: Callable[[Session], T], notes: list[object]) -> Callable[[Session], T]:
    """``fn``, whose notes go to ``notes``; those of an earlier try are thrown away."""

    def run(session: Session) -> T:
        notes.clear()
        # A session may be several transactions' in turn (see group_commit), each with notes of its own.
        session.info[_NOTES] = notes
        return fn(session)

    return run
