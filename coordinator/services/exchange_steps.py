"""What the unary messages of an exchange have in common: verified, then stored with their event and their audit row.

The same message again is answered as the first time; another one for the same step is refused; so is one from a site
outside the set that was asked, one that comes too early, and one that comes too late.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, object_session

from coordinator.db.audit import append_audit
from coordinator.db.exchanges import add_message, is_repeated, n_sent
from coordinator.errors import LateError, NotInCohortError, WrongPhaseError
from coordinator.rounds.events import ExchangeEvent, MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationEvent, ParticipationState
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.round_access import (
    ExchangeAccess,
    exchange_facts,
    move_participation,
    require_exchange,
    site_actor,
)
from coordinator.services.site_presence import note_seen
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext

_ORDER = (
    ExchangeState.ADVERTISING,
    ExchangeState.SHARING,
    ExchangeState.COLLECTING,
    ExchangeState.CONFIRMING,
    ExchangeState.REVEALING,
    ExchangeState.SUMMED,
    ExchangeState.FAILED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A message of a site, and when it came."""

    site_id: SiteId
    exchange: ExchangeContext
    encoded: bytes
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStep:
    """What is particular to one kind of message.

    Attributes:
        kind: its name.
        states: the phases in which it is taken.
        members: who may send it, out of the exchange's row.
        verify: raises SecAggRefusedError where the message is wrong.
        event: what it means to the machine.
        participation: what it means to the site's row, if anything.
        audit: how it is recorded.
        facts: what is recorded with it, beside exchange and site; asked after ``verify``.
    """

    kind: MessageKind
    states: tuple[ExchangeState, ...]
    members: Callable[[ExchangeAccess], Collection[str] | None]
    verify: Callable[[Session, ExchangeAccess], None]
    event: Callable[[], ExchangeEvent]
    participation: ParticipationEvent | None
    audit: AuditKind
    facts: Callable[[], Mapping[str, AuditFact]] = dict


def check_step_is_open(
    access: ExchangeAccess, *, site_id: SiteId, states: tuple[ExchangeState, ...], members: Collection[str] | None
) -> None:
    """Check that the site is asked for this message now.

    Raises:
        NotInCohortError: the set that was asked does not hold the site.
        WrongPhaseError: the phase has not begun, or the site left the round.
        LateError: the phase has ended.
    """
    state = ExchangeState(access.exchange.state)
    if members is not None and site_id not in members:
        raise NotInCohortError("this site is not among those that were asked", site_id=site_id, state=state.value)
    if state not in states:
        is_early = _ORDER.index(state) < _ORDER.index(states[0])
        refusal = WrongPhaseError if is_early else LateError
        message = "this step is not open yet" if is_early else "this step was closed before the message came: late"
        raise refusal(message, site_id=site_id, state=state.value)
    if ParticipationState(access.participation.state).is_gone:
        raise WrongPhaseError(
            "the site takes no further part in this round",
            site_id=site_id,
            state=access.participation.state,
            reason=access.participation.reason,
        )


def accept_message(session: Session, incoming: Incoming, step: MessageStep) -> bool:
    """Take one message, inside a transaction.

    Returns:
        Whether it is the last that its phase waits for, so that the driver has something to do.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: the site may not.
        ConflictError: other content for a step that was taken.
        WrongPhaseError, LateError: the step is not open.
        SecAggRefusedError: the message is wrong.
    """
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    if is_repeated(session, access.context, kind=step.kind, site_id=incoming.site_id, encoded=incoming.encoded):
        return False
    members = step.members(access)
    check_step_is_open(access, site_id=incoming.site_id, states=step.states, members=members)
    step.verify(session, access)
    store_message(session, access, incoming, kind=step.kind)
    if step.participation is not None:
        move_participation(access.participation, step.participation, now=incoming.now)
    store_event(session, step.event(), access.context, now=incoming.now)
    append_audit(
        session,
        step.audit,
        actor=site_actor(incoming.site_id),
        facts={**exchange_facts(access.context), "site_id": incoming.site_id, **step.facts()},
        now=incoming.now,
    )
    return is_last_of_phase(session, access, kind=step.kind, members=members)


def is_last_of_phase(
    session: Session, access: ExchangeAccess, *, kind: MessageKind, members: Collection[str] | None
) -> bool:
    """Whether all that were asked for a message of this kind have sent it, or nobody knows who was asked.

    The driver need not be woken for the others: what they mean is read with the last one, or when the driver looks by
    itself, which it does twice a second.
    """
    return members is None or n_sent(session, access.context, kind=kind) >= len(members)


def store_message(session: Session, access: ExchangeAccess, incoming: Incoming, *, kind: MessageKind) -> None:
    """Keep the bytes and count them."""
    add_message(
        session,
        access.context,
        kind=kind,
        site_id=incoming.site_id,
        encoded=incoming.encoded,
        now=incoming.now,
    )
    access.participation.bytes_up += len(incoming.encoded)


def note_progress(access: ExchangeAccess, *, now: datetime, pause: timedelta) -> None:
    """A phase's deadline counts from the last progress in it; who sends for hours asks nothing meanwhile."""
    access.exchange.phase_deadline_at = max(access.exchange.phase_deadline_at, now + pause)
    session = object_session(access.participation)
    assert session is not None, "the row is of the caller's transaction"
    note_seen(session, SiteId(access.participation.site_id), now=now)


async def take_message(ctx: EngineContext, name: str, incoming: Incoming, step: MessageStep) -> None:
    """``accept_message`` in a transaction of its own; then wake the driver, where it has waited for this message."""
    if await ctx.db.run_tx_async(name, lambda session: accept_message(session, incoming, step)):
        ctx.wakeups.wake_driver()
