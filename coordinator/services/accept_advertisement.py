"""M1: a site's fresh keys for one exchange."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from coordinator.db.exchanges import messages_of
from coordinator.rounds.events import KeysAdvertised, MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationEvent
from coordinator.services.context import EngineContext
from coordinator.services.exchange_steps import Incoming, MessageStep, take_message
from coordinator.services.round_access import ExchangeAccess
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_m1
from fl_protocol.secagg.messages import KeyAdvertisement
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext


async def accept_advertisement(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, m1: bytes) -> None:
    """Verify and keep an M1.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """

    def verify(session: Session, access: ExchangeAccess) -> None:
        said = check_m1(ctx.roles.opened(session, access.exchange), m1, sender=site_id)
        _refuse_repeated_keys(said, messages_of(session, access.context, kind=MessageKind.M1))

    step = MessageStep(
        kind=MessageKind.M1,
        states=(ExchangeState.ADVERTISING,),
        members=lambda access: access.exchange.invited,
        verify=verify,
        event=lambda: KeysAdvertised(site_id=site_id),
        participation=ParticipationEvent.KEYS_ADVERTISED,
        audit=AuditKind.KEYS_ADVERTISED,
    )
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m1, now=ctx.now())
    await take_message(ctx, "accept-advertisement", incoming, step)


def _refuse_repeated_keys(said: KeyAdvertisement, stored: Mapping[SiteId, bytes]) -> None:
    """Refuse a key that another site advertised: every site would refuse the cohort that holds both."""
    keys = (said.mask_key, said.transport_key)
    # Looked for in the bytes first: of many sites' messages hardly one is worth reading.
    for site, m1 in ((site, m1) for site, m1 in stored.items() if any(key in m1 for key in keys)):
        other = KeyAdvertisement.decode(SignedBody.decode(m1).body)
        if {said.mask_key, said.transport_key} & {other.mask_key, other.transport_key}:
            raise SecAggRefusedError(RefusalReason.KEY_REPEATED, blamed=said.site, other=site)
