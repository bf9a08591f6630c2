"""Events that wait to be read by a run's driver, and effects that wait to be performed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from coordinator.db.models import Event, OutboxEntry
from coordinator.db.tables import table_of

_EVENTS = table_of(Event)
_ADD_EVENT = insert(_EVENTS)


def append_event(session: Session, run_id: str, *, kind: str, payload: dict[str, object], now: datetime) -> None:
    """Note that something happened to a run."""
    session.execute(
        _ADD_EVENT, {"run_id": run_id, "kind": kind, "payload": payload, "created_at": now, "consumed_at": None}
    )


_PENDING = select(Event).where(Event.run_id == bindparam("run_id"), Event.consumed_at.is_(None)).order_by(Event.id)
_CONSUME = update(_EVENTS).where(_EVENTS.c.id == bindparam("event_id")).values(consumed_at=bindparam("now"))


def pending_events(session: Session, run_id: str) -> Sequence[Event]:
    """What the run's driver has not read yet, in order."""
    return session.scalars(_PENDING, {"run_id": run_id}).all()


def consume_events(session: Session, rows: Sequence[Event], *, now: datetime) -> None:
    """Mark events as read."""
    if rows:
        session.execute(_CONSUME, [{"event_id": row.id, "now": now} for row in rows])


def add_effect(session: Session, run_id: str, *, kind: str, payload: dict[str, object], now: datetime) -> None:
    """Ask for an effect, to be performed after this transaction."""
    session.add(
        OutboxEntry(
            run_id=run_id,
            kind=kind,
            payload=payload,
            created_at=now,
            attempts=0,
            next_try_at=now,
            done_at=None,
            last_error=None,
        )
    )


_DUE = (
    select(OutboxEntry)
    .where(
        OutboxEntry.run_id == bindparam("run_id"),
        OutboxEntry.done_at.is_(None),
        OutboxEntry.next_try_at <= bindparam("now"),
    )
    .order_by(OutboxEntry.id)
)


def due_effects(session: Session, run_id: str, *, now: datetime) -> Sequence[OutboxEntry]:
    """The run's effects that may be tried now, in order."""
    return session.scalars(_DUE, {"run_id": run_id, "now": now}).all()


def has_open_effects(session: Session, run_id: str) -> bool:
    """Whether an effect of the run is still to be done."""
    query = select(OutboxEntry.id).where(OutboxEntry.run_id == run_id, OutboxEntry.done_at.is_(None)).limit(1)
    return session.scalars(query).first() is not None


def end_effects(session: Session, run_id: str, *, round_place: list[int], now: datetime) -> None:
    """Ask no more for the effects of a round that has ended: one that is at work finds its row taken."""
    query = select(OutboxEntry).where(OutboxEntry.run_id == run_id, OutboxEntry.done_at.is_(None))
    for entry in session.scalars(query):
        if entry.payload.get("round") == round_place:
            entry.done_at = now


def first_open_effect(session: Session, run_id: str) -> OutboxEntry | None:
    """The effect of the run that is to be done first."""
    query = select(OutboxEntry).where(OutboxEntry.run_id == run_id, OutboxEntry.done_at.is_(None))
    return session.scalars(query.order_by(OutboxEntry.id).limit(1)).first()


def take_open_effect(session: Session, effect_id: int, *, now: datetime) -> bool:
    """Mark an effect done; False when it was done before, and then nothing may follow from it again.

    Two drivers that performed the same effect meet here: the row is locked, and the second finds it done.
    """
    entry = session.get(OutboxEntry, effect_id, with_for_update=True)
    if entry is None or entry.done_at is not None:
        return False
    entry.done_at = now
    return True


def note_effect_failure(session: Session, effect_id: int, *, error: str, now: datetime, pause: timedelta) -> int:
    """Count a failed try; returns how many there were."""
    entry = session.get(OutboxEntry, effect_id)
    if entry is None or entry.done_at is not None:
        return 0
    entry.attempts += 1
    entry.last_error = error[:500]
    entry.next_try_at = now + pause
    return entry.attempts
