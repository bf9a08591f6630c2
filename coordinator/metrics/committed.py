"""Counts what transactions committed: each event once, when and where it was recorded.

It is told after the COMMIT (``db.notes``), so that a try that was run again, and one that failed, is not counted. Of
several processes each counts what it committed itself; their sum is the coordinator's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.round_machine import RoundState
from coordinator.services.phase_moves import PhaseMoved
from fl_protocol.audit.events import AuditEvent, AuditKind
from fl_protocol.ids import RunId
from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.meter import Meter

_MOST_OPEN = 4096
_PHASES: Mapping[RoundState | ExchangeState, str] = {
    RoundState.TRAINING: "training",
    RoundState.FOLDING: "folding",
    ExchangeState.ADVERTISING: "advertising",
    ExchangeState.SHARING: "sharing",
    ExchangeState.COLLECTING: "collecting",
    ExchangeState.CONFIRMING: "confirming",
    ExchangeState.REVEALING: "revealing",
}
"""The phase that a state is; EXCHANGING is what the exchange's own states divide."""
_Place = tuple[RoundRef, type[RoundState] | type[ExchangeState]]


class CommittedCounts:
    """A ``TransactionWatch`` that counts. Called from many threads."""

    def __init__(self, meter: Meter) -> None:
        """Count on this meter."""
        self._meter = meter
        self._phases = PhaseClock(lambda phase, seconds: meter.observe(metrics.PHASE_SECONDS, seconds, phase))

    def committed(self, notes: Sequence[object]) -> None:
        """See ``TransactionWatch``."""
        for each in notes:
            match each:
                case AuditEvent():
                    self._count(each)
                case PhaseMoved():
                    self._phases.moved(each)

    def failed(self, code: str) -> None:
        """See ``TransactionWatch``."""
        self._meter.count(metrics.AUDIT_FAILURES, code)

    def _count(self, event: AuditEvent) -> None:
        meter, facts = self._meter, event.facts
        meter.count(metrics.AUDIT_APPENDS)
        match event.kind:
            case AuditKind.ROUND_OPENED:
                self._phases.entered(_round_of(event), RoundState.TRAINING, event.at)
            case AuditKind.EXCHANGE_OPENED:
                self._phases.entered(_round_of(event), ExchangeState.ADVERTISING, event.at)
            case AuditKind.ROUND_COMMITTED:
                meter.count(metrics.ROUNDS)
            case AuditKind.ROUND_ABORTED:
                meter.count(metrics.ROUNDS_ABORTED, str(facts.get("reason")))
            case AuditKind.SUM_PUBLISHED:
                meter.count(metrics.EXCHANGES)
            case AuditKind.EXCHANGE_FAILED:
                meter.count(metrics.EXCHANGES_FAILED, str(facts.get("reason")))
            case AuditKind.UPLOAD_ACCEPTED:
                meter.count(metrics.UPLOADS, "accepted")
                meter.count(metrics.UPLOAD_BYTES, by=float(facts["n_bytes"] or 0))
            case AuditKind.UPLOAD_REFUSED:
                meter.count(metrics.UPLOADS, "refused")


class PhaseClock:
    """Remembers when each open round entered its phase. Bounded: of too many the oldest is forgotten."""

    def __init__(self, observe: Callable[[str, float], None]) -> None:
        """Tell ``observe`` the phase's name and its seconds."""
        self._observe = observe
        self._since: OrderedDict[_Place, tuple[RoundState | ExchangeState, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def entered(self, ref: RoundRef, state: RoundState | ExchangeState, at: datetime) -> None:
        """A round, or its exchange, began in this state."""
        with self._lock:
            self._since[ref, type(state)] = (state, at)
            while len(self._since) > _MOST_OPEN:
                self._since.popitem(last=False)

    def moved(self, move: PhaseMoved) -> None:
        """It went on to another state; a phase whose beginning another process saw is not told."""
        with self._lock:
            state, since = self._since.pop((move.round, type(move.left)), (None, move.at))
        if state is move.left and (phase := _PHASES.get(move.left)) is not None:
            # Two processes' clocks may differ by a moment; a duration is not negative.
            self._observe(phase, max(0.0, (move.at - since).total_seconds()))
        if move.entered in _PHASES:
            self.entered(move.round, move.entered, move.at)


def _round_of(event: AuditEvent) -> RoundRef:
    facts = event.facts
    return RoundRef(
        run_id=RunId(str(facts["run_id"])),
        round_index=int(facts["round_index"] or 0),
        round_attempt=int(facts["round_attempt"] or 0),
    )
