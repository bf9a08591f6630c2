"""A site's signed word on the public state that it computed from the published sum, compared with ours."""

from __future__ import annotations

import hashlib
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Exchange, Participation, Round
from coordinator.errors import ConflictError, InvalidMessageError, NotInCohortError, WrongPhaseError
from coordinator.rounds.round_machine import RoundState
from coordinator.services.context import EngineContext
from coordinator.services.round_access import exchange_facts, require_active_site, require_exchange, site_actor
from coordinator.services.site_instructions import published_result
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.packing import text_from_bytes, u32_from_bytes, unpack
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.context import ExchangeContext

ACKNOWLEDGEMENT_KIND = "WR/sig/ack"

_log = structlog.get_logger("coordinator.services")


async def acknowledge_result(
    ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext, acknowledgement: SignedBody
) -> None:
    """Keep the acknowledgement; where the site's state is not ours, record that too.

    Args:
        ctx: the engine.
        site_id: who acknowledges.
        exchange: whose result.
        acknowledgement: ``pack(run_id, u32(round_index), SHA-256 of M10, digest of the new public state)``.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: the site may not.
        WrongPhaseError: the round is not committed.
        InvalidMessageError, SignatureInvalidError: it is malformed, about something else, or not signed by the site.
        ConflictError: the site acknowledged something else before.
    """
    now = ctx.now()
    is_same = await ctx.db.run_tx_async(
        "acknowledge-result", lambda session: _acknowledge(session, site_id, exchange, signed=acknowledgement, now=now)
    )
    if not is_same:
        _log.error("public_state_differs", site_id=site_id, run_id=exchange.run_id, round_index=exchange.round_index)


def _acknowledge(
    session: Session, site_id: SiteId, context: ExchangeContext, *, signed: SignedBody, now: datetime
) -> bool:
    access = require_exchange(session, site_id, context)
    row = access.participation
    round_row = session.get(Round, (row.run_id, row.round_index, row.round_attempt))
    assert round_row is not None, "a participation's round exists"
    if round_row.state != RoundState.COMMITTED.value:
        raise WrongPhaseError("the round has no published result", site_id=site_id, state=round_row.state)
    if site_id not in (access.exchange.u3 or ()):
        raise NotInCohortError("this site is not in the sum", site_id=site_id)
    spki = require_active_site(session, site_id).signing_spki
    assert spki is not None, "an enrolled site has its signing key"
    state_sha256 = _read(verify_body(spki, ACKNOWLEDGEMENT_KIND, signed), access.exchange)
    is_same = state_sha256 == round_row.state_sha256_after
    if row.acknowledged_at is not None and row.acknowledged_state_sha256 == state_sha256:
        return is_same
    if row.acknowledged_at is not None and row.acknowledged_state_sha256 == round_row.state_sha256_after:
        raise ConflictError("this result was acknowledged with another state", site_id=site_id)
    _keep(row, signed, state_sha256=state_sha256, now=now)
    append_audit(
        session,
        AuditKind.RESULT_VERIFIED if is_same else AuditKind.RESULT_REFUSED,
        actor=site_actor(site_id),
        facts={**exchange_facts(access.context), "site_id": site_id, "state_sha256": state_sha256},
        now=now,
    )
    return is_same


def _read(body: bytes, exchange: Exchange) -> str:
    """The digest of the site's state, once the rest of the statement is found to be about this result."""
    run_id, round_index, result, state = unpack(body, 4)
    m10 = published_result(exchange).m10
    if text_from_bytes(run_id) != exchange.run_id or u32_from_bytes(round_index) != exchange.round_index:
        raise InvalidMessageError("the acknowledgement is about another round", run_id=exchange.run_id)
    if result != hashlib.sha256(m10).digest() or len(state) != 32:
        raise InvalidMessageError("the acknowledgement is about another result", run_id=exchange.run_id)
    return state.hex()


def _keep(row: Participation, signed: SignedBody, *, state_sha256: str, now: datetime) -> None:
    row.acknowledged_at = now
    row.acknowledged_state_sha256 = state_sha256
    row.acknowledgement_body = signed.body
    row.acknowledgement_signature = signed.signature
