"""The open round of a run: its machines hear every event, then time; what they ask for is done here or put out.

Who may act is read from the sites' rows at each turn, so that a site that was suspended or revoked, and one that came
back, is seen without an event.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.db.exchanges import context_of, latest_exchange
from coordinator.db.models import Exchange, Participation, Round, Site
from coordinator.db.notes import note
from coordinator.db.outbox import add_effect, end_effects
from coordinator.db.rounds import participations_of
from coordinator.db.sites import sites_by_name
from coordinator.db.states import SiteState
from coordinator.rounds import effects
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
from coordinator.rounds.round_machine import RoundState, step_round
from coordinator.rounds.run_machine import RunState
from coordinator.services.abort_round import abort_round, end_exchange, record_failure
from coordinator.services.commit_round import commit_round
from coordinator.services.effect_kinds import EffectKind, exchange_payload, round_payload
from coordinator.services.event_rows import AddressedEvent
from coordinator.services.open_round import open_exchange
from coordinator.services.phase_moves import PhaseMoved
from coordinator.services.round_access import exchange_facts, move_participation, ref_of
from coordinator.services.round_status import dealt_quorum, exchange_status, round_status, store_exchange
from coordinator.services.turn import Turn
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId

_FOR_BOTH = (SiteReported, TimePassed, RunCancelled)
_REPEATABLE = frozenset(
    {ExchangeState.ADVERTISING, ExchangeState.SHARING, ExchangeState.COLLECTING, ExchangeState.CONFIRMING}
)


def drive_round(turn: Turn, round_row: Round, stored: Sequence[AddressedEvent]) -> None:
    """Deliver what happened, in order; then what the rows say of run and sites; then that time has passed."""
    drive = _Drive(turn, round_row)
    for addressed in stored:
        drive.deliver_stored(addressed)
    if turn.run.state == RunState.CANCELLED.value:
        drive.deliver(RunCancelled())
    drive.drop_inactive_sites()
    drive.deliver(TimePassed())


class _Drive:
    """The open round of one turn: its machines, and the rows that they speak about."""

    def __init__(self, turn: Turn, round_row: Round) -> None:
        self.turn, self.row = turn, round_row
        self.session, self.now, self.rules = turn.session, turn.now, turn.rules
        self.participations = participations_of(turn.session, round_row)
        self.sites: dict[SiteId, Site] = sites_by_name(turn.session, self.participations)
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
        """A site that was suspended or revoked takes no further part.

        One whose update is in the sum, or will be, is given up only when it was revoked: a suspended one may be let
        back in, and its voice may be needed.
        """
        for site, row in self.participations.items():
            if RoundState(self.row.state).is_final:
                # An event of this very turn has ended it: who was counted stays counted.
                return
            state = self.sites[site].state
            if state == SiteState.ENROLLED.value or ParticipationState(row.state).is_gone:
                continue
            if not self._is_in_the_sum(site):
                self._drop((site,), DropReason.SITE_NOT_ACTIVE)
            elif state == SiteState.REVOKED.value:
                self._drop((site,), DropReason.SITE_REVOKED)
            else:
                continue
            self.deliver(SiteReported(site_id=site))

    def _is_in_the_sum(self, site: SiteId) -> bool:
        exchange = self.exchange
        if exchange is None or exchange.state == ExchangeState.FAILED.value:
            return False
        has_uploaded = exchange.state == ExchangeState.COLLECTING.value and site in exchange.arrived
        return has_uploaded or site in (exchange.u3 or ())

    def _step_exchange(self, event: ExchangeEvent) -> None:
        exchange = self.exchange
        assert exchange is not None, "the caller saw it"
        quorum = dealt_quorum(self.session, self.turn.ctx.roles, exchange)
        before = exchange_status(exchange, self.participations, self.sites, dealt_quorum=quorum)
        step = step_exchange(before, event, rules=self.rules, now=self.now)
        if step.status == before:
            return
        store_exchange(exchange, step.status, now=self.now)
        self.turn.is_changed = True
        for effect in step.effects:
            self._perform(effect)
        if before.state is step.status.state:
            return
        note(self.session, PhaseMoved.of(self.row, left=before.state, entered=step.status.state, at=self.now))
        self.turn.has_moved = True
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
        before = round_status(self.row, self.exchange, self.participations, self.sites, now=self.now)
        step = step_round(before, event, rules=self.rules, now=self.now)
        if step.status.state is not before.state:
            self.row.state = step.status.state.value
            self.row.reason = None if step.status.reason is None else step.status.reason.value
            note(self.session, PhaseMoved.of(self.row, left=before.state, entered=step.status.state, at=self.now))
            self.turn.has_moved = True
        for effect in step.effects:
            self._perform(effect)
        if step.status.state is RoundState.ABORTED:
            abort_round(self.row, trail=self.turn.trail, now=self.now)
            place = [self.row.round_index, self.row.round_attempt]
            end_effects(self.session, self.row.run_id, round_place=place, now=self.now)

    def _perform(self, effect: ExchangeEffect | RoundEffect) -> None:
        """Carry out what belongs in this transaction; put the rest into the outbox."""
        match effect:
            case effects.DropSites(sites=sites, reason=reason):
                self._drop(sites, reason)
            case effects.ReturnSites(sites=sites):
                self._return(sites)
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
        self.turn.has_moved = True
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

    def _return(self, sites: tuple[SiteId, ...]) -> None:
        for site in sites:
            row = self.participations[site]
            if move_participation(row, ParticipationEvent.RETURNED, now=self.now):
                self._record(row)

    def _record(self, row: Participation) -> None:
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
