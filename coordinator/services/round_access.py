"""What every message of a site passes first: the site may act, takes part, and speaks of what exists."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.exchanges import context_of, find_exchange
from coordinator.db.models import Exchange, Participation, Round, Run, Site
from coordinator.db.rounds import find_site_in_round
from coordinator.db.states import SiteState
from coordinator.errors import (
    IllegalTransitionError,
    NotFoundError,
    NotInCohortError,
    SiteNotActiveError,
    WrongPhaseError,
)
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.participation_machine import ParticipationEvent, ParticipationState, step_participation
from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.context import ExchangeContext

COORDINATOR = "coordinator"


def site_actor(site_id: SiteId) -> str:
    """How the log names a site."""
    return f"site:{site_id}"


def ref_of(row: Round | Participation | Exchange) -> RoundRef:
    """The round that a row belongs to."""
    return RoundRef(run_id=RunId(row.run_id), round_index=row.round_index, round_attempt=row.round_attempt)


def require_active_site(session: Session, site_id: SiteId) -> Site:
    """The site, if it may act.

    Raises:
        SiteNotActiveError: it is not ENROLLED.
    """
    site = session.get(Site, site_id)
    if site is None or site.state != SiteState.ENROLLED.value:
        raise inactive_site(site_id, None if site is None else site.state)
    return site


def inactive_site(site_id: SiteId, state: str | None) -> SiteNotActiveError:
    """What is raised for a site that may not act; ``state`` is None where there is no such site."""
    return SiteNotActiveError("this site may not act", site_id=site_id, state=state or "unknown")


def require_participation(session: Session, site_id: SiteId, ref: RoundRef) -> tuple[Round, Participation]:
    """The round and the site's row in it.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError.
    """
    key = (ref.run_id, ref.round_index, ref.round_attempt)
    found = find_site_in_round(session, site_id, key)
    if found is None:
        raise _why_not_in_round(session, site_id, key)
    site, round_row, row = found
    if site.state != SiteState.ENROLLED.value:
        raise inactive_site(site_id, site.state)
    return round_row, row


def _why_not_in_round(session: Session, site_id: SiteId, key: tuple[str, int, int]) -> WardroundError:
    site = session.get(Site, site_id)
    if site is None or site.state != SiteState.ENROLLED.value:
        return inactive_site(site_id, None if site is None else site.state)
    if session.get(Round, key) is None:
        return NotFoundError("there is no such round", run_id=key[0], round_index=key[1])
    return NotInCohortError("this site was not invited to the round", site_id=site_id, run_id=key[0])


def require_run(session: Session, run_id: str) -> Run:
    """The run. Raises NotFoundError."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("there is no such run", run_id=run_id[:80])
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeAccess:
    """An exchange, and the row of the site that speaks in it."""

    exchange: Exchange
    participation: Participation
    context: ExchangeContext


def require_exchange(session: Session, site_id: SiteId, context: ExchangeContext) -> ExchangeAccess:
    """The exchange and the site's row in its round.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError.
    """
    ref = RoundRef(run_id=context.run_id, round_index=context.round_index, round_attempt=context.round_attempt)
    _, participation = require_participation(session, site_id, ref)
    exchange = find_exchange(session, context)
    if exchange is None:
        raise NotFoundError("there is no such exchange", run_id=context.run_id, round_index=context.round_index)
    return ExchangeAccess(exchange=exchange, participation=participation, context=context_of(exchange))


def move_participation(
    row: Participation, event: ParticipationEvent, *, now: datetime, reason: str | None = None
) -> bool:
    """Step a participation; returns whether its state changed.

    Raises:
        WrongPhaseError: its state does not permit this.
    """
    try:
        state = step_participation(ParticipationState(row.state), event)
    except IllegalTransitionError as error:
        raise WrongPhaseError(
            "the site's part in this round does not permit this step",
            site_id=row.site_id,
            state=row.state,
            step=event.value,
        ) from error
    is_changed = row.state != state.value
    if not is_changed:
        return False
    row.state = state.value
    # A step that was said again is no progress: ``updated_at`` is what deadlines count from.
    row.updated_at = now
    if reason is not None or event is ParticipationEvent.RETURNED:
        row.reason = reason
    return True


def audit_participation(session: Session, row: Participation, *, actor: str, now: datetime) -> None:
    """Record a participation's new state; last in its transaction."""
    append_audit(
        session,
        AuditKind.PARTICIPATION_STATE,
        actor=actor,
        facts={**round_facts(ref_of(row)), "site_id": row.site_id, "state": row.state, "reason": row.reason},
        now=now,
    )


def round_facts(ref: RoundRef) -> dict[str, str | int | bool | None]:
    """What names a round in the log."""
    return {"run_id": ref.run_id, "round_index": ref.round_index, "round_attempt": ref.round_attempt}


def exchange_facts(context: ExchangeContext) -> dict[str, str | int | bool | None]:
    """What names an exchange in the log."""
    return {
        "run_id": context.run_id,
        "round_index": context.round_index,
        "round_attempt": context.round_attempt,
        "exchange_index": context.exchange_index,
        "exchange_attempt": context.exchange_attempt,
    }
