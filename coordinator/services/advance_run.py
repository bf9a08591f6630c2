"""One turn of a run's machines: events in order, then time; states, outbox and audit in one transaction.

The only writer of round and exchange states. It works by level where it can: a suspended site, a cancelled run, a
quorum of approvals are seen in the rows, so that nobody has to remember to send an event.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.audit import write_checkpoint
from coordinator.db.exchanges import context_of, latest_exchange
from coordinator.db.models import Exchange, Participation, Round, Run
from coordinator.db.outbox import add_effect, pending_events
from coordinator.db.rounds import latest_round, participations_of
from coordinator.db.rounds import open_round as find_open_round
from coordinator.db.runs import approved_sites
from coordinator.db.sites import active_sites
from coordinator.errors import NotFoundError
from coordinator.rounds import effects
from coordinator.rounds.cohort import invited_sites
from coordinator.rounds.effects import ExchangeEffect, RoundEffect
from coordinator.rounds.events import (
    EffectGaveUp,
    ExchangeEvent,
    ExchangeFailed,
    ExchangeFailure,
    ExchangeSummed,
    RoundEvent,
    RunCancelled,
    SiteReported,
    TimePassed,
)
from coordinator.rounds.exchange_machine import ExchangeState, step_exchange
from coordinator.rounds.participation_machine import DropReason, ParticipationEvent, ParticipationState
from coordinator.rounds.round_machine import MAX_ROUND_ATTEMPTS, RoundState, step_round
from coordinator.rounds.run_machine import RunEvent, RunFailure, RunState, step_run
from coordinator.services.abort_round import abort_round, end_exchange, record_failure
from coordinator.services.audit_trail import AuditTrail
from coordinator.services.commit_round import commit_round
from coordinator.services.context import EngineContext
from coordinator.services.effect_kinds import EffectKind, exchange_payload, round_payload
from coordinator.services.event_rows import AddressedEvent, event_from_row
from coordinator.services.open_round import open_exchange, open_round
from coordinator.services.round_access import COORDINATOR, exchange_facts, move_participation, ref_of
from coordinator.services.round_status import dealt_quorum, exchange_status, round_status, store_exchange
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId

_MILESTONES = frozenset(
    {AuditKind.ROUND_OPENED, AuditKind.ROUND_COMMITTED, AuditKind.ROUND_ABORTED, AuditKind.RUN_STATE}
)
_FOR_BOTH = (SiteReported, TimePassed, RunCancelled)
_REPEATABLE = frozenset(
    {ExchangeState.ADVERTISING, ExchangeState.SHARING, ExchangeState.COLLECTING, ExchangeState.CONFIRMING}
)


def advance_run(ctx: EngineContext, session: Session, run_id: str, *, now: datetime) -> bool:
    """Read what happened and go as far as it leads.

    Returns:
        Whether anything changed; then there may be more to do at once.

    Raises:
        NotFoundError: there is no such run.
        IllegalTransitionError: an event that the tables do not list; nothing is written.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("there is no such run", run_id=run_id)
    turn = _Turn(ctx, session, run, now=now)
    turn.go()
    return turn.is_changed


class _Turn:
    """One transaction's work on one run."""

    def __init__(self, ctx: EngineContext, session: Session, run: Run, *, now: datetime) -> None:
        self.ctx, self.session, self.run, self.now = ctx, session, run, now
        self.trail = AuditTrail(actor=COORDINATOR)
        self.rules = ctx.roles.run_facts(run).rules
        self.is_changed = False

    def go(self) -> None:
        """Deliver every event, then time; where no round is open, see whether the run goes on."""
        rows = pending_events(self.session, self.run.run_id)
        round_row = find_open_round(self.session, self.run.run_id)
        if round_row is not None:
            self._drive(round_row, [event_from_row(row) for row in rows])
        else:
            self._plan()
        for row in rows:
            row.consumed_at = self.now
            self.is_changed = True
        if self.trail:
            self.is_changed = True
        is_milestone = self.trail.holds_any(_MILESTONES)
        self.trail.write(self.session, now=self.now)
        if is_milestone:
            write_checkpoint(self.session, signer=self.ctx.signer, origin=self.ctx.origin, now=self.now)

    # The open round

    def _drive(self, round_row: Round, stored: list[AddressedEvent]) -> None:
        drive = _Drive(self, round_row)
        for addressed in stored:
            drive.deliver_stored(addressed)
        if self.run.state == RunState.CANCELLED.value:
            drive.deliver(RunCancelled())
        drive.drop_inactive_sites()
        drive.deliver(TimePassed())

    # Between rounds

    def _plan(self) -> None:
        state = RunState(self.run.state)
        if state is RunState.AWAITING_SITES:
            n_approved = len(approved_sites(self.session, self.run.run_id) & set(self._roster()))
            if n_approved >= self.rules.quorum:
                self._move_run(RunEvent.QUORUM_APPROVED)
        elif state in {RunState.ACTIVE, RunState.PAUSED}:
            self._plan_round(state)

    def _plan_round(self, state: RunState) -> None:
        spec = self.ctx.roles.run_facts(self.run).spec
        last = latest_round(self.session, self.run.run_id)
        if self.run.next_round_index > spec.rounds:
            self._move_run(RunEvent.ROUNDS_COMPLETED)
            add_effect(self.session, self.run.run_id, kind=EffectKind.CREATE_RELEASE, payload={}, now=self.now)
            return
        is_repeat = last is not None and last.round_index == self.run.next_round_index
        attempt = last.round_attempt + 1 if is_repeat and last is not None else 0
        if attempt >= MAX_ROUND_ATTEMPTS:
            reason = None if last is None else last.reason
            self._move_run(RunEvent.GAVE_UP, reason=f"{RunFailure.ATTEMPTS_EXHAUSTED.value}: {reason}")
            return
        invited = self.invitable()
        if state is RunState.PAUSED or len(invited) < self.rules.min_ready:
            return
        open_round(
            self.ctx,
            self.session,
            self.run,
            round_attempt=attempt,
            invited=invited,
            trail=self.trail,
            now=self.now,
        )

    def invitable(self) -> tuple[SiteId, ...]:
        """Who would be invited to a round that opens now."""
        roster = self._roster()
        pins = self.ctx.roles.run_facts(self.run).spec.cohort.pins
        keys = active_sites(self.session, roster)
        return invited_sites(
            roster,
            approved=approved_sites(self.session, self.run.run_id),
            active=[site for site, key in keys.items() if key == pins[site]],
        )

    def _roster(self) -> tuple[SiteId, ...]:
        return tuple(self.ctx.roles.run_facts(self.run).spec.cohort.pins)

    def _move_run(self, event: RunEvent, *, reason: str | None = None) -> None:
        state = step_run(RunState(self.run.state), event)
        self.run.state = state.value
        self.run.reason = reason
        if state.is_final:
            self.run.finished_at = self.now
        self.trail.add(AuditKind.RUN_STATE, {"run_id": self.run.run_id, "state": state.value, "reason": reason})


class _Drive:
    """The open round of one turn: its machines, and the rows that they speak about."""

    def __init__(self, turn: _Turn, round_row: Round) -> None:
        self.turn, self.row = turn, round_row
        self.session, self.now, self.rules = turn.session, turn.now, turn.rules
        self.participations = participations_of(turn.session, round_row)
        self.exchange: Exchange | None = latest_exchange(turn.session, round_row)

    def deliver_stored(self, addressed: AddressedEvent) -> None:
        """Deliver an event if it is about this round, and about its present exchange if about one at all."""
        if addressed.round != ref_of(self.row):
            return
        if addressed.exchange is not None and (
            self.exchange is None or addressed.exchange != context_of(self.exchange)
        ):
            return
        self.deliver(addressed.event)

    def deliver(self, event: ExchangeEvent | RoundEvent) -> None:
        """Let the machines hear of it: the exchange first, where it is open, then the round."""
        if RoundState(self.row.state).is_final:
            return
        exchange = self.exchange
        is_open = exchange is not None and not ExchangeState(exchange.state).is_final
        if isinstance(event, EffectGaveUp):
            if is_open:
                self._step_exchange(event)
            else:
                self._step_round(event)
        elif isinstance(event, _FOR_BOTH):
            if is_open:
                self._step_exchange(event)
            if not RoundState(self.row.state).is_final:
                self._step_round(event)
        elif isinstance(event, ExchangeEvent):
            if exchange is not None:
                self._step_exchange(event)
        else:
            self._step_round(event)

    def drop_inactive_sites(self) -> None:
        """A site that was suspended or revoked takes no further part."""
        active = active_sites(self.session, self.participations)
        counted = set(self.exchange.u3 or ()) if self.exchange is not None else set()
        for site, row in self.participations.items():
            if site in active or site in counted or ParticipationState(row.state).is_gone:
                continue
            self._drop((site,), DropReason.SITE_NOT_ACTIVE)
            self.deliver(SiteReported(site_id=site))

    def _step_exchange(self, event: ExchangeEvent) -> None:
        exchange = self.exchange
        assert exchange is not None, "the caller saw it"
        quorum = dealt_quorum(self.session, self.turn.ctx.roles, exchange)
        before = exchange_status(exchange, self.participations, dealt_quorum=quorum)
        step = step_exchange(before, event, rules=self.rules, now=self.now)
        if step.status == before:
            return
        store_exchange(exchange, step.status, now=self.now)
        self.turn.is_changed = True
        for effect in step.effects:
            self._perform(effect)
        if before.state is step.status.state:
            return
        if step.status.state is ExchangeState.SUMMED:
            self._publish(exchange)
            self._step_round(ExchangeSummed())
        elif step.status.state is ExchangeState.FAILED:
            assert step.status.reason is not None, "a failed exchange has its reason"
            record_failure(exchange, trail=self.turn.trail)
            if step.status.reason is not ExchangeFailure.ROUND_ENDED:
                may_be_repeated = before.state in _REPEATABLE
                self._step_round(ExchangeFailed(reason=step.status.reason, may_be_repeated=may_be_repeated))

    def _step_round(self, event: RoundEvent) -> None:
        before = round_status(self.row, self.exchange, self.participations)
        step = step_round(before, event, rules=self.rules, now=self.now)
        if step.status.state is not before.state:
            self.row.state = step.status.state.value
            self.row.reason = None if step.status.reason is None else step.status.reason.value
            self.turn.is_changed = True
        for effect in step.effects:
            self._perform(effect)
        if step.status.state is RoundState.ABORTED:
            abort_round(self.row, trail=self.turn.trail, now=self.now)

    def _perform(self, effect: ExchangeEffect | RoundEffect) -> None:
        """Carry out what belongs in this transaction; put the rest into the outbox."""
        match effect:
            case effects.DropSites(sites=sites, reason=reason):
                self._drop(sites, reason)
            case effects.OpenExchange():
                self._open_exchange(effect)
            case effects.ComputeSum():
                assert self.exchange is not None, "the effect is the exchange's"
                payload = exchange_payload(context_of(self.exchange))
                self._ask(EffectKind.COMPUTE_SUM, payload)
            case effects.FoldRound():
                self._ask(EffectKind.FOLD_ROUND, round_payload(ref_of(self.row)))
            case effects.CommitRound():
                assert self.exchange is not None, "a folded round has its exchange"
                commit_round(
                    self.turn.run,
                    self.row,
                    self.exchange,
                    participations=self.participations,
                    trail=self.turn.trail,
                    now=self.now,
                )
            case effects.EndExchange():
                end_exchange(self.exchange, trail=self.turn.trail, now=self.now)

    def _ask(self, kind: EffectKind, payload: dict[str, object]) -> None:
        add_effect(self.session, self.row.run_id, kind=kind, payload=payload, now=self.now)

    def _open_exchange(self, effect: effects.OpenExchange) -> None:
        self.exchange = open_exchange(
            self.session,
            self.row,
            exchange_index=effect.exchange_index,
            exchange_attempt=effect.exchange_attempt,
            invited=effect.invited,
            phase_deadline=self.rules.phase_deadline,
            trail=self.turn.trail,
            now=self.now,
        )

    def _drop(self, sites: tuple[SiteId, ...], reason: DropReason) -> None:
        for site in sites:
            row = self.participations[site]
            if move_participation(row, ParticipationEvent.WENT_SILENT, now=self.now, reason=reason.value):
                self._record(row)

    def _record(self, row: Participation) -> None:
        self.turn.is_changed = True
        self.turn.trail.add(
            AuditKind.PARTICIPATION_STATE,
            {
                "run_id": row.run_id,
                "round_index": row.round_index,
                "round_attempt": row.round_attempt,
                "site_id": row.site_id,
                "state": row.state,
                "reason": row.reason,
            },
        )

    def _publish(self, exchange: Exchange) -> None:
        self.turn.trail.add(
            AuditKind.SUM_PUBLISHED,
            {
                **exchange_facts(context_of(exchange)),
                "survivors": ",".join(exchange.u3 or ()),
                "sum_sha256": exchange.sum_blob_sha256,
                "transcript_root": exchange.transcript_root,
            },
        )
