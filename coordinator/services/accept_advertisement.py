"""M1: a site's fresh keys for one exchange, and the head of its own audit log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.db.exchanges import messages_of
from coordinator.rounds.events import KeysAdvertised, MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationEvent
from coordinator.services.context import EngineContext
from coordinator.services.exchange_steps import Incoming, MessageStep, accept_message
from coordinator.services.round_access import ExchangeAccess
from coordinator.services.witness_site import LogStanding, SaidHead, compare_with_held, keep_said_head
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import check_m1
from fl_protocol.secagg.messages import KeyAdvertisement
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLogProof:
    """What a site proves of its own audit log beside M1: from which head that is held of it, and the proof."""

    held_size: int = 0
    proof: tuple[bytes, ...] = ()


_NO_PROOF = OwnLogProof()


async def accept_advertisement(
    ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, m1: bytes, own_log: OwnLogProof = _NO_PROOF
) -> None:
    """Verify and keep an M1, and the head of the site's own log that it carries.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError,
        SecAggRefusedError: see ``exchange_steps.accept_message``.
    """
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m1, now=ctx.now())

    def accept(session: Session) -> bool:
        heard: list[tuple[SaidHead, LogStanding]] = []

        def verify(session: Session, access: ExchangeAccess) -> None:
            said = check_m1(ctx.roles.opened(session, access.exchange), m1, sender=site_id)
            _refuse_repeated_keys(said, messages_of(session, access.context, kind=MessageKind.M1))
            head = SaidHead(
                site_id=site_id, heads=said.heads, statement=m1, held_size=own_log.held_size, proof=own_log.proof
            )
            heard.append((head, compare_with_held(session, head)))

        def facts() -> dict[str, AuditFact]:
            (head, standing) = heard[0]
            return {**head.facts, "log_standing": standing.value}

        step = MessageStep(
            kind=MessageKind.M1,
            states=(ExchangeState.ADVERTISING,),
            members=lambda access: access.exchange.invited,
            verify=verify,
            event=lambda: KeysAdvertised(site_id=site_id),
            participation=ParticipationEvent.KEYS_ADVERTISED,
            audit=AuditKind.KEYS_ADVERTISED,
            facts=facts,
        )
        is_last = accept_message(session, incoming, step)
        for head, standing in heard:
            keep_said_head(session, head, standing, exchange=exchange, now=incoming.now)
        return is_last

    if await ctx.db.run_tx_async("accept-advertisement", accept):
        ctx.wakeups.wake_driver()


def _refuse_repeated_keys(said: KeyAdvertisement, stored: Mapping[SiteId, bytes]) -> None:
    """Refuse a key that another site advertised: every site would refuse the cohort that holds both."""
    keys = (said.mask_key, said.transport_key)
    # Looked for in the bytes first: of many sites' messages hardly one is worth reading.
    for site, m1 in ((site, m1) for site, m1 in stored.items() if any(key in m1 for key in keys)):
        other = KeyAdvertisement.decode(SignedBody.decode(m1).body)
        if {said.mask_key, said.transport_key} & {other.mask_key, other.transport_key}:
            raise SecAggRefusedError(RefusalReason.KEY_REPEATED, blamed=said.site, other=site)
