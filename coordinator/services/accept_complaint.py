"""A site's signed word that a dealer's shares are bad. The attempt ends; the next one goes on without the dealer.

It proves nothing about the dealer, so that the dealer's row says *contested*. Nothing has been revealed yet, and
whatever was masked in this attempt stays masked for ever.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.db.exchanges import is_repeated, participation_in
from coordinator.rounds.events import DealerBlamed, MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationEvent, RejectReason
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.exchange_steps import Incoming, check_step_is_open, store_message
from coordinator.services.round_access import (
    audit_participation,
    move_participation,
    require_exchange,
    site_actor,
)
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_complaint
from fl_protocol.spec.context import ExchangeContext

_STATES = (ExchangeState.SHARING, ExchangeState.COLLECTING)


async def accept_complaint(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, complaint: bytes) -> None:
    """Verify and keep a complaint, and take the dealer out of the round.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=complaint, now=ctx.now())
    await ctx.db.run_tx_async("accept-complaint", lambda session: _accept(ctx, session, incoming))
    ctx.wakeups.wake_driver()


def _accept(ctx: EngineContext, session: Session, incoming: Incoming) -> None:
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    kind = MessageKind.COMPLAINT
    if is_repeated(session, access.context, kind=kind, site_id=incoming.site_id, encoded=incoming.encoded):
        return
    check_step_is_open(access, site_id=incoming.site_id, states=_STATES, members=access.exchange.u1)
    keyed = ctx.roles.keyed(session, access.exchange)
    complaint = check_complaint(keyed, incoming.encoded, sender=incoming.site_id)
    store_message(session, access, incoming, kind=kind)
    store_event(session, DealerBlamed(dealer=complaint.dealer), access.context, now=incoming.now)
    dealer = participation_in(session, access.context, complaint.dealer)
    assert dealer is not None, "a member of U1 takes part in the round"
    move_participation(dealer, ParticipationEvent.BLAMED, now=incoming.now, reason=RejectReason.DEAL_CONTESTED)
    audit_participation(session, dealer, actor=site_actor(incoming.site_id), now=incoming.now)
