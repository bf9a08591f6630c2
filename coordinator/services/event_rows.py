"""Events of the machines as rows of the database, and back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.models import Event
from coordinator.db.outbox import append_event
from coordinator.errors import CoordinatorError
from coordinator.rounds import events
from coordinator.rounds.events import ExchangeEvent, ExchangeFailure, RoundEvent
from coordinator.rounds.instructions import RoundRef
from fl_protocol.ids import RunId
from fl_protocol.spec.context import ExchangeContext

StoredEvent = ExchangeEvent | RoundEvent

_KINDS: dict[str, type[StoredEvent]] = {
    kind.__name__: kind
    for kind in (
        events.SiteReported,
        events.EffectGaveUp,
        events.KeysAdvertised,
        events.SharesDealt,
        events.UploadCompleted,
        events.SurvivorsConfirmed,
        events.SharesRevealed,
        events.LiarNamed,
        events.DealerBlamed,
        events.SumComputed,
        events.SumRefused,
        events.RoundFolded,
        events.FoldRefused,
    )
}


class EventRowInvalidError(CoordinatorError):
    """A row holds no event that this version knows."""

    code = "event-row-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressedEvent:
    """An event and what it is about: an exchange, or a round only."""

    event: StoredEvent
    round: RoundRef
    exchange: ExchangeContext | None


def store_event(session: Session, event: StoredEvent, about: RoundRef | ExchangeContext, *, now: datetime) -> None:
    """Note an event for the run's driver."""
    payload: dict[str, object] = {
        "round": [about.round_index, about.round_attempt],
        "exchange": ([about.exchange_index, about.exchange_attempt] if isinstance(about, ExchangeContext) else None),
        "facts": {field.name: getattr(event, field.name) for field in fields(event)},
    }
    append_event(session, about.run_id, kind=type(event).__name__, payload=payload, now=now)


def event_from_row(row: Event) -> AddressedEvent:
    """Read what ``store_event`` wrote.

    Raises:
        EventRowInvalidError: the row is not one of those.
    """
    kind = _KINDS.get(row.kind)
    facts, place, exchange = (row.payload.get(key) for key in ("facts", "round", "exchange"))
    if kind is None or not isinstance(facts, dict) or not isinstance(place, list):
        raise EventRowInvalidError("this version knows no such event", event_id=row.id, kind=row.kind)
    if kind is events.SumRefused:
        facts = {"reason": ExchangeFailure(facts["reason"])}
    run_id = RunId(row.run_id)
    round_ref = RoundRef(run_id=run_id, round_index=place[0], round_attempt=place[1])
    context = None
    if isinstance(exchange, list):
        context = ExchangeContext(
            run_id=run_id,
            round_index=place[0],
            round_attempt=place[1],
            exchange_index=exchange[0],
            exchange_attempt=exchange[1],
        )
    return AddressedEvent(event=kind(**facts), round=round_ref, exchange=context)
