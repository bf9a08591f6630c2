"""What one transaction will record, gathered while it works and written last."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.audit import append_all
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind


class AuditTrail:
    """Events in the order in which they became true. Made anew for each try of a transaction."""

    def __init__(self, *, actor: str) -> None:
        self._actor = actor
        self._events: list[tuple[AuditKind, dict[str, AuditFact]]] = []

    def __len__(self) -> int:
        """How many events wait to be written."""
        return len(self._events)

    def holds_any(self, kinds: frozenset[AuditKind]) -> bool:
        """Whether an event of one of these kinds waits to be written."""
        return any(kind in kinds for kind, _ in self._events)

    def add(self, kind: AuditKind, facts: Mapping[str, AuditFact]) -> None:
        """Gather one event."""
        self._events.append((kind, dict(facts)))

    def write(self, session: Session, *, now: datetime) -> None:
        """Append all; the last writes of the transaction."""
        session.flush()
        if self._events:
            append_all(
                session,
                [AuditEvent(kind=kind, at=now, actor=self._actor, facts=facts) for kind, facts in self._events],
            )
        self._events.clear()
