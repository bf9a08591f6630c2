"""Counts what transactions committed, and tells it as spans: each event once, when and where it was recorded.

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
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import round_trace, run_trace
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing

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

    def __init__(self, meter: Meter, tracing: Tracing = NO_TRACING) -> None:
        """Count on this meter, and tell rounds and their phases as spans."""
        self._meter = meter
        self._tracing = tracing
        self._phases = PhaseClock(self._phase_ended)

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
                self._round_ended(event, outcome="committed")
            case AuditKind.ROUND_ABORTED:
                self._round_ended(event, outcome=str(facts.get("reason")))
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

    def _phase_ended(self, ref: RoundRef, phase: str, began: datetime, ended: datetime) -> None:
        self._meter.observe(metrics.PHASE_SECONDS, (ended - began).total_seconds(), phase)
        parent = round_trace(ref.run_id, ref.round_index, ref.round_attempt)
        self._tracing.tell(SpanName.PHASE, {**_named(ref), "phase": phase}, parent=parent, began=began, ended=ended)

    def _round_ended(self, event: AuditEvent, *, outcome: str) -> None:
        """The first span of the round's trace. A round that another process opened has none, and all else of it."""
        ref = _round_of(event)
        began = self._phases.opened_at(ref)
        if began is not None:
            self._tracing.tell(
                SpanName.ROUND,
                {**_named(ref), "outcome": outcome},
                parent=None,
                began=began,
                ended=max(began, event.at),
                own=round_trace(ref.run_id, ref.round_index, ref.round_attempt),
                about=run_trace(ref.run_id),
            )


class PhaseClock:
    """Remembers when each open round entered its phase. Bounded: of too many the oldest is forgotten."""

    def __init__(self, observe: Callable[[RoundRef, str, datetime, datetime], None]) -> None:
        """Tell ``observe`` the round, the phase's name, its beginning and its end."""
        self._observe = observe
        self._opened: OrderedDict[RoundRef, datetime] = OrderedDict()
        self._since: OrderedDict[_Place, tuple[RoundState | ExchangeState, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def entered(self, ref: RoundRef, state: RoundState | ExchangeState, at: datetime) -> None:
        """A round, or its exchange, began in this state."""
        with self._lock:
            self._since[ref, type(state)] = (state, at)
            self._opened.setdefault(ref, at)
            for remembered in (self._since, self._opened):
                while len(remembered) > _MOST_OPEN:
                    remembered.popitem(last=False)

    def opened_at(self, ref: RoundRef) -> datetime | None:
        """When the round began, for the one who sees its end; it is forgotten then."""
        with self._lock:
            return self._opened.pop(ref, None)

    def moved(self, move: PhaseMoved) -> None:
        """It went on to another state; a phase whose beginning another process saw is not told."""
        with self._lock:
            state, since = self._since.pop((move.round, type(move.left)), (None, move.at))
        if state is move.left and (phase := _PHASES.get(move.left)) is not None:
            # Two processes' clocks may differ by a moment; a duration is not negative.
            self._observe(move.round, phase, since, max(since, move.at))
        if move.entered in _PHASES:
            self.entered(move.round, move.entered, move.at)


def _named(ref: RoundRef) -> dict[str, str | int]:
    return {"run_id": ref.run_id, "round_index": ref.round_index, "round_attempt": ref.round_attempt}


def _round_of(event: AuditEvent) -> RoundRef:
    facts = event.facts
    return RoundRef(
        run_id=RunId(str(facts["run_id"])),
        round_index=int(facts["round_index"] or 0),
        round_attempt=int(facts["round_attempt"] or 0),
    )
