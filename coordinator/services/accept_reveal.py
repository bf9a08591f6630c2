"""M9: a site's shares, one of two kinds for each peer. A site whose shares are not those it was dealt is named."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.exchanges import is_repeated
from coordinator.errors import LateError
from coordinator.rounds.events import LiarNamed, MessageKind, SharesRevealed
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationEvent, RejectReason
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.exchange_steps import Incoming, check_step_is_open, is_last_of_phase, store_message
from coordinator.services.round_access import (
    ExchangeAccess,
    audit_participation,
    exchange_facts,
    move_participation,
    require_exchange,
    site_actor,
)
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_m9
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.spec.context import ExchangeContext

_LIES = frozenset({RefusalReason.SHARE_INVALID, RefusalReason.SHARE_MISSING})
"""Refusals that come after the signature was found good: the site itself said what is false."""


async def accept_reveal(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, m9: bytes) -> None:
    """Verify and keep an M9. A false one makes the site's participation REJECTED, and is refused.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m9, now=ctx.now())
    said = await ctx.db.run_tx_async("accept-reveal", lambda session: _accept(ctx, session, incoming))
    if said is not False:
        ctx.wakeups.wake_driver()
    if isinstance(said, SecAggRefusedError):
        raise said


def _accept(ctx: EngineContext, session: Session, incoming: Incoming) -> SecAggRefusedError | bool:
    """The refusal of a site that was found lying; else whether everybody has revealed."""
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    if is_repeated(session, access.context, kind=MessageKind.M9, site_id=incoming.site_id, encoded=incoming.encoded):
        return False
    check_step_is_open(access, site_id=incoming.site_id, states=(ExchangeState.REVEALING,), members=access.exchange.u4)
    if access.exchange.u5 is not None:
        raise LateError("the sum is being computed already: late", site_id=incoming.site_id)
    try:
        check_m9(ctx.roles.surviving(session, access.exchange), incoming.encoded, sender=incoming.site_id)
    except SecAggRefusedError as refusal:
        if refusal.reason not in _LIES or refusal.blamed != incoming.site_id:
            raise
        # Returned, not raised: this transaction must commit what it found out.
        _name_liar(session, access, incoming)
        return refusal
    store_message(session, access, incoming, kind=MessageKind.M9)
    store_event(session, SharesRevealed(site_id=incoming.site_id), access.context, now=incoming.now)
    append_audit(
        session,
        AuditKind.SHARES_REVEALED,
        actor=site_actor(incoming.site_id),
        facts={**exchange_facts(access.context), "site_id": incoming.site_id},
        now=incoming.now,
    )
    return is_last_of_phase(session, access, kind=MessageKind.M9, members=access.exchange.u4)


def _name_liar(session: Session, access: ExchangeAccess, incoming: Incoming) -> None:
    row = access.participation
    move_participation(row, ParticipationEvent.BLAMED, now=incoming.now, reason=RejectReason.SHARES_FALSE)
    store_event(session, LiarNamed(site_id=incoming.site_id), access.context, now=incoming.now)
    audit_participation(session, row, actor=site_actor(incoming.site_id), now=incoming.now)
