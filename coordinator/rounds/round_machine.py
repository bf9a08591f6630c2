"""One attempt at a round.

``PLANNED -> TRAINING -> EXCHANGING(i) -> FOLDING -> COMMITTED``; any ``-> ABORTED(reason)``. Keys are exchanged after
training, among the sites that are READY. An exchange that failed before shares were asked for is run again, at most
three times in all, among the sites that are there, with those that came back in the meantime; where those are too few,
the round keeps its payloads and waits for them. One that failed later ends the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from coordinator.errors import IllegalTransitionError
from coordinator.rounds.cohort import exchange_candidates
from coordinator.rounds.effects import (
    CommitRound,
    DropSites,
    EndExchange,
    FoldRound,
    OpenExchange,
    ReturnSites,
    RoundEffect,
)
from coordinator.rounds.events import (
    AbortReason,
    EffectGaveUp,
    ExchangeFailed,
    ExchangeFailure,
    ExchangeSummed,
    FoldRefused,
    RoundEvent,
    RoundFolded,
    RoundOpened,
    RunCancelled,
    SiteReported,
    TimePassed,
)
from coordinator.rounds.participation_machine import DropReason, ParticipationState
from coordinator.rounds.quorum import RoundRules
from fl_protocol.ids import SiteId

MAX_EXCHANGE_ATTEMPTS = 3
ENOUGH_GRACE = timedelta(seconds=5)
"""How long training stays open once enough are ready: one that is about to finish shall not have worked in vain."""


class RoundState(StrEnum):
    """The states of a round."""

    PLANNED = "PLANNED"
    TRAINING = "TRAINING"
    EXCHANGING = "EXCHANGING"
    FOLDING = "FOLDING"
    COMMITTED = "COMMITTED"
    ABORTED = "ABORTED"

    @property
    def is_final(self) -> bool:
        """Whether no event leads on from here."""
        return self in {RoundState.COMMITTED, RoundState.ABORTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """What the machine knows of a round.

    Attributes:
        state: where it stands.
        participations: every invited site's state.
        deadline_at: before this nobody is given up in training.
        exchange_index: the exchange that is open or comes next; one a round in this version.
        exchange_attempt: the attempt that is open, has failed last, or comes first.
        exchange_failed_at: when that attempt failed; None while it is open, and before there is one.
        exchange_failure: why it failed.
        changed_at: when each site last made progress: a new state, or a new step of its training.
        silent: sites that were given up for their silence in an exchange, and whose payloads may still be there.
        away: sites that were not heard of lately, nor since they were given up, or that may not act.
        reason: why it was ABORTED.
    """

    state: RoundState
    participations: Mapping[SiteId, ParticipationState]
    deadline_at: datetime
    exchange_index: int = 0
    exchange_attempt: int = 0
    exchange_failed_at: datetime | None = None
    exchange_failure: ExchangeFailure | None = None
    changed_at: Mapping[SiteId, datetime] = field(default_factory=dict)
    silent: frozenset[SiteId] = frozenset()
    away: frozenset[SiteId] = frozenset()
    reason: AbortReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStep:
    """The status that follows, and what is asked for."""

    status: RoundStatus
    effects: tuple[RoundEffect, ...] = ()


def _begin(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return RoundStep(status=replace(status, state=RoundState.TRAINING))


def _watch_training(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    """Training ends when nobody is at work any more, when enough are ready, or when too few can ever be.

    A site that reports progress is late, not dead: past the round's deadline, those are given up that made none for as
    long as the idle deadline.
    """
    del event
    ready = exchange_candidates(status.participations)
    at_work = tuple(sorted(site for site, state in status.participations.items() if state.is_at_work))
    effects: tuple[RoundEffect, ...] = ()
    if at_work and _is_enough(status, ready, rules=rules, now=now):
        effects, at_work = (DropSites(sites=at_work, reason=DropReason.ENOUGH),), ()
    elif silent := tuple(site for site in at_work if _is_silent(status, site, rules=rules, now=now)):
        effects = (DropSites(sites=silent, reason=DropReason.NOT_READY),)
        at_work = tuple(site for site in at_work if site not in silent)
    if len(ready) + len(at_work) < rules.min_ready:
        return _abort(status, AbortReason.QUORUM_NOT_REACHED, effects)
    if at_work:
        return RoundStep(status=status, effects=effects)
    opened = OpenExchange(exchange_index=status.exchange_index, exchange_attempt=status.exchange_attempt, invited=ready)
    return RoundStep(status=replace(status, state=RoundState.EXCHANGING), effects=(*effects, opened))


def _is_enough(status: RoundStatus, ready: tuple[SiteId, ...], *, rules: RoundRules, now: datetime) -> bool:
    if rules.enough is None or len(ready) < rules.enough:
        return False
    since = sorted(status.changed_at[site] for site in ready if site in status.changed_at)
    return len(since) < rules.enough or now >= since[rules.enough - 1] + ENOUGH_GRACE


def _is_silent(status: RoundStatus, site: SiteId, *, rules: RoundRules, now: datetime) -> bool:
    heard = status.changed_at.get(site)
    return now >= status.deadline_at and (heard is None or now - heard >= rules.phase_deadline)


def _repeat_exchange(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    """Begin afresh among the sites that are there, if no share was asked for; else wait or end."""
    assert isinstance(event, ExchangeFailed)
    if not event.may_be_repeated:
        return _abort(status, _ABORT_REASONS[event.reason])
    if status.exchange_attempt + 1 >= MAX_EXCHANGE_ATTEMPTS:
        is_refusal = _ABORT_REASONS[event.reason].is_refusal
        reason = _ABORT_REASONS[event.reason] if is_refusal else AbortReason.EXCHANGE_ATTEMPTS_EXHAUSTED
        return _abort(status, reason)
    failed = replace(status, exchange_failed_at=now, exchange_failure=event.reason)
    return _begin_afresh(failed, rules=rules, now=now)


def _watch_exchange(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    """Between two exchanges: begin afresh once enough sites are there. Who leaves an open one is its own business."""
    del event
    if status.exchange_failed_at is None:
        return RoundStep(status=status)
    return _begin_afresh(status, rules=rules, now=now)


def _begin_afresh(status: RoundStatus, *, rules: RoundRules, now: datetime) -> RoundStep:
    assert status.exchange_failed_at is not None, "the exchange before has failed"
    assert status.exchange_failure is not None, "the exchange before has failed"
    candidates = set(exchange_candidates(status.participations))
    here = tuple(sorted((candidates | status.silent) - status.away))
    if len(here) >= rules.min_ready:
        attempt = status.exchange_attempt + 1
        opened = OpenExchange(exchange_index=status.exchange_index, exchange_attempt=attempt, invited=here)
        returned = tuple(site for site in here if site in status.silent)
        effects: tuple[RoundEffect, ...] = (ReturnSites(sites=returned), opened) if returned else (opened,)
        following = replace(status, exchange_attempt=attempt, exchange_failed_at=None, exchange_failure=None)
        return RoundStep(status=following, effects=effects)
    # Training took hours, perhaps: its payloads are kept as long again as it was given, for the missing to come back.
    is_hopeless = len(candidates | status.silent) < rules.min_ready
    if is_hopeless or now >= status.exchange_failed_at + rules.round_deadline:
        return _abort(status, _ABORT_REASONS[status.exchange_failure])
    return RoundStep(status=status)


_ABORT_REASONS: Mapping[ExchangeFailure, AbortReason] = MappingProxyType(
    {
        ExchangeFailure.TOO_FEW_ADVERTISED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_SHARED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_UPLOADED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_CONFIRMED: AbortReason.TOO_FEW_CONFIRMED,
        ExchangeFailure.TOO_FEW_REVEALED: AbortReason.TOO_FEW_REVEALED,
        ExchangeFailure.DEALER_BLAMED: AbortReason.DEALER_BLAMED,
        ExchangeFailure.UNMASKING_REFUSED: AbortReason.UNMASKING_REFUSED,
        ExchangeFailure.IMPLAUSIBLE_SUM: AbortReason.IMPLAUSIBLE_SUM,
        ExchangeFailure.EFFECT_FAILED: AbortReason.EFFECT_FAILED,
        ExchangeFailure.ROUND_ENDED: AbortReason.RUN_CANCELLED,
    }
)


def _begin_fold(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return RoundStep(status=replace(status, state=RoundState.FOLDING), effects=(FoldRound(),))


def _commit(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return RoundStep(status=replace(status, state=RoundState.COMMITTED), effects=(CommitRound(),))


def _refuse_fold(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return _abort(status, AbortReason.FOLD_REFUSED)


def _give_up(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return _abort(status, AbortReason.EFFECT_FAILED)


def _cancel(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return _abort(status, AbortReason.RUN_CANCELLED)


def _stay(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del event, rules, now
    return RoundStep(status=status)


def _abort(status: RoundStatus, reason: AbortReason, effects: tuple[RoundEffect, ...] = ()) -> RoundStep:
    following = replace(status, state=RoundState.ABORTED, reason=reason)
    return RoundStep(status=following, effects=(*effects, EndExchange()))


_Apply = Callable[..., RoundStep]
_S = RoundState
TRANSITIONS: Mapping[tuple[RoundState, type[RoundEvent]], _Apply] = MappingProxyType(
    {
        (_S.PLANNED, RoundOpened): _begin,
        (_S.PLANNED, RunCancelled): _cancel,
        (_S.TRAINING, SiteReported): _watch_training,
        (_S.TRAINING, TimePassed): _watch_training,
        (_S.TRAINING, RunCancelled): _cancel,
        (_S.EXCHANGING, SiteReported): _watch_exchange,
        (_S.EXCHANGING, TimePassed): _watch_exchange,
        (_S.EXCHANGING, ExchangeSummed): _begin_fold,
        (_S.EXCHANGING, ExchangeFailed): _repeat_exchange,
        (_S.EXCHANGING, RunCancelled): _cancel,
        (_S.FOLDING, SiteReported): _stay,
        (_S.FOLDING, TimePassed): _stay,
        (_S.FOLDING, RoundFolded): _commit,
        (_S.FOLDING, FoldRefused): _refuse_fold,
        (_S.FOLDING, EffectGaveUp): _give_up,
        (_S.FOLDING, RunCancelled): _cancel,
    }
)


def step_round(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    """The status that follows, and what is asked for.

    Raises:
        IllegalTransitionError: the table does not list the pair.
    """
    apply = TRANSITIONS.get((status.state, type(event)))
    if apply is None:
        raise IllegalTransitionError(
            "the round's state does not permit this",
            machine="round",
            state=status.state.value,
            event=type(event).__name__,
        )
    return apply(status, event, rules=rules, now=now)
