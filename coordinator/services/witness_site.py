"""The other direction: every M1 carries the head of its site's own audit log, and here it is compared with the last.

A site whose log does not continue what it signed before is recorded and logged, and not refused. Its log is evidence
for others and protects nobody here; the usual cause is a state folder that was restored; and a coordinator that shut
sites out for it would be one more way to stop a round. What both M1s say stays in the log, signed by that site.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import SiteLogHead
from coordinator.services.round_access import exchange_facts, site_actor
from fl_protocol.audit.chain import AuditProofInvalidError, TreeHead, verify_consistency
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.secagg.messages import AuditHeads
from fl_protocol.spec.context import ExchangeContext

_log = structlog.get_logger("coordinator.services")


class LogStanding(StrEnum):
    """How a site's log stands to what this coordinator holds of it."""

    FIRST = "first"
    """Nothing was held."""
    PROVEN = "proven"
    """It continues what was held, or the reverse: two messages may overtake each other."""
    UNPROVEN = "unproven"
    """No proof came, or one from another head than is held: a site of before 0.2, or one that just lost an answer."""
    FORKED = "forked"
    """The proof shows that it does not; or one size has two heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidHead:
    """What came with an M1.

    Attributes:
        site_id: whose log.
        heads: out of the signed M1.
        statement: the M1, as it was signed.
        held_size: from which head the site proves, as it says.
        proof: RFC 6962, 2.1.2.
    """

    site_id: SiteId
    heads: AuditHeads
    statement: bytes
    held_size: int
    proof: tuple[bytes, ...]

    @property
    def facts(self) -> dict[str, AuditFact]:
        """For the log: the site's signed word, so that the log alone can show it."""
        return {
            "log_size": self.heads.size,
            "log_head": self.heads.head.hex(),
            "statement": base64.b64encode(self.statement).decode(),
        }


def compare_with_held(session: Session, said: SaidHead) -> LogStanding:
    """How the site's log stands to what is held of it. Reads only."""
    held = session.get(SiteLogHead, said.site_id)
    if held is None:
        return LogStanding.FIRST
    before = TreeHead(size=held.size, root=Sha256Hex(held.head))
    now = TreeHead(size=said.heads.size, root=Sha256Hex(said.heads.head.hex()))
    if before == now:
        return LogStanding.PROVEN
    if before.size == now.size:
        return LogStanding.FORKED
    if said.held_size != held.size:
        return LogStanding.UNPROVEN
    older, newer = sorted((before, now), key=lambda head: head.size)
    try:
        verify_consistency(older, newer, [node.hex() for node in said.proof])
    except AuditProofInvalidError:
        return LogStanding.FORKED if said.proof else LogStanding.UNPROVEN
    return LogStanding.PROVEN


def keep_said_head(
    session: Session, said: SaidHead, standing: LogStanding, *, exchange: ExchangeContext, now: datetime
) -> None:
    """Hold the new head where it is known to continue the old one; record a fork. After the M1 was recorded."""
    held = session.get(SiteLogHead, said.site_id)
    if standing is LogStanding.FORKED:
        assert held is not None, "nothing forks from nothing"
        facts: dict[str, AuditFact] = {
            **exchange_facts(exchange),
            "site_id": said.site_id,
            **said.facts,
            "held_size": held.size,
            "held_head": held.head,
            "held_statement": base64.b64encode(held.statement).decode(),
        }
        append_audit(session, AuditKind.HISTORY_FORKED, actor=site_actor(said.site_id), facts=facts, now=now)
        _log.warning("site_history_forked", site_id=said.site_id, held_size=held.size, said_size=said.heads.size)
        return
    if not said.heads.size or standing is LogStanding.UNPROVEN or (held is not None and held.size >= said.heads.size):
        return
    if held is None:
        held = SiteLogHead(site_id=said.site_id)
        session.add(held)
    held.size, held.head = said.heads.size, said.heads.head.hex()
    held.statement, held.seen_at = said.statement, now
    session.flush()
