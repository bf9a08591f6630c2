"""M7: a site's signature over the survivor set."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.rounds.events import MessageKind, SurvivorsConfirmed
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.services.context import EngineContext
from coordinator.services.exchange_steps import Incoming, MessageStep, take_message
from coordinator.services.round_access import ExchangeAccess
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_m7
from fl_protocol.spec.context import ExchangeContext


async def accept_confirmation(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, m7: bytes) -> None:
    """Verify and keep an M7.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """

    def verify(session: Session, access: ExchangeAccess) -> None:
        check_m7(ctx.roles.surviving(session, access.exchange), m7, sender=site_id)

    step = MessageStep(
        kind=MessageKind.M7,
        states=(ExchangeState.CONFIRMING,),
        members=lambda access: access.exchange.u3,
        verify=verify,
        event=lambda: SurvivorsConfirmed(site_id=site_id),
        participation=None,
        audit=AuditKind.SURVIVORS_CONFIRMED,
    )
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m7, now=ctx.now())
    await take_message(ctx, "accept-confirmation", incoming, step)
