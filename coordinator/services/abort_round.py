"""A round or an exchange ends without a sum. Nothing is lost but time: what was masked stays masked."""

from __future__ import annotations

from datetime import datetime

from coordinator.db.exchanges import context_of
from coordinator.db.models import Exchange, Round
from coordinator.rounds.events import ExchangeFailure
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.services.audit_trail import AuditTrail
from coordinator.services.round_access import exchange_facts, ref_of, round_facts
from fl_protocol.audit.events import AuditKind


def abort_round(row: Round, *, trail: AuditTrail, now: datetime) -> None:
    """Write the end of a round whose machine said ABORTED."""
    row.finished_at = now
    trail.add(AuditKind.ROUND_ABORTED, {**round_facts(ref_of(row)), "reason": row.reason})


def end_exchange(exchange: Exchange | None, *, trail: AuditTrail, now: datetime) -> None:
    """The round has ended over its exchange: one that is still open ends too."""
    if exchange is None or ExchangeState(exchange.state).is_final:
        return
    exchange.state = ExchangeState.FAILED.value
    exchange.reason = ExchangeFailure.ROUND_ENDED.value
    exchange.finished_at = now
    record_failure(exchange, trail=trail)


def record_failure(exchange: Exchange, *, trail: AuditTrail) -> None:
    """Record that an exchange FAILED."""
    trail.add(AuditKind.EXCHANGE_FAILED, {**exchange_facts(context_of(exchange)), "reason": exchange.reason})
