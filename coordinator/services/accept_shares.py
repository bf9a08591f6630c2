"""M3: a site's sealed shares, one for each member of the cohort. The coordinator passes them on and can open none."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.rounds.events import MessageKind, SharesDealt
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.services.context import EngineContext
from coordinator.services.exchange_steps import Incoming, MessageStep, take_message
from coordinator.services.round_access import ExchangeAccess
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_m3
from fl_protocol.spec.context import ExchangeContext


async def accept_shares(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, m3: bytes) -> None:
    """Verify and keep an M3.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """

    def verify(session: Session, access: ExchangeAccess) -> None:
        check_m3(ctx.roles.keyed(session, access.exchange), m3, sender=site_id)

    step = MessageStep(
        kind=MessageKind.M3,
        states=(ExchangeState.SHARING,),
        members=lambda access: access.exchange.u1,
        verify=verify,
        event=lambda: SharesDealt(site_id=site_id),
        participation=None,
        audit=AuditKind.SHARES_DEALT,
    )
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m3, now=ctx.now())
    await take_message(ctx, "accept-shares", incoming, step)
