"""One attempt at a round.

``PLANNED -> TRAINING -> EXCHANGING(i) -> FOLDING -> COMMITTED``; any ``-> ABORTED(reason)``. Keys are exchanged after
training, among the sites that are READY. An exchange that failed before shares were asked for is run again, at most
three times in all; one that failed later ends the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from coordinator.errors import IllegalTransitionError
from coordinator.rounds.cohort import exchange_candidates
from coordinator.rounds.effects import CommitRound, DropSites, EndExchange, FoldRound, OpenExchange, RoundEffect
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
MAX_ROUND_ATTEMPTS = 3


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
        deadline_at: when training is over.
        exchange_index: the exchange that is open or comes next; one a round in this version.
        exchange_attempt: the attempt that is open or comes next.
        reason: why it was ABORTED.
    """

    state: RoundState
    participations: Mapping[SiteId, ParticipationState]
    deadline_at: datetime
    exchange_index: int = 0
    exchange_attempt: int = 0
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
    """Training ends when nobody is at work any more, or at the deadline, or when too few are left to ever be enough."""
    del event
    at_work = tuple(sorted(site for site, state in status.participations.items() if state.is_at_work))
    ready = exchange_candidates(status.participations)
    is_over = not at_work or now >= status.deadline_at
    if not is_over and len(ready) + len(at_work) >= rules.min_ready:
        return RoundStep(status=status)
    effects: tuple[RoundEffect, ...] = ()
    if at_work and is_over:
        effects = (DropSites(sites=at_work, reason=DropReason.NOT_READY),)
    if len(ready) < rules.min_ready:
        return _abort(status, AbortReason.QUORUM_NOT_REACHED, effects)
    opened = OpenExchange(exchange_index=status.exchange_index, exchange_attempt=status.exchange_attempt, invited=ready)
    return RoundStep(status=replace(status, state=RoundState.EXCHANGING), effects=(*effects, opened))


def _repeat_exchange(status: RoundStatus, event: RoundEvent, *, rules: RoundRules, now: datetime) -> RoundStep:
    del now
    assert isinstance(event, ExchangeFailed)
    if not event.may_be_repeated:
        return _abort(status, _ABORT_REASONS[event.reason])
    candidates = exchange_candidates(status.participations)
    if len(candidates) < rules.min_ready:
        return _abort(status, AbortReason.QUORUM_NOT_REACHED)
    attempt = status.exchange_attempt + 1
    if attempt >= MAX_EXCHANGE_ATTEMPTS:
        return _abort(status, AbortReason.EXCHANGE_ATTEMPTS_EXHAUSTED)
    opened = OpenExchange(exchange_index=status.exchange_index, exchange_attempt=attempt, invited=candidates)
    return RoundStep(status=replace(status, exchange_attempt=attempt), effects=(opened,))


_ABORT_REASONS: Mapping[ExchangeFailure, AbortReason] = MappingProxyType(
    {
        ExchangeFailure.TOO_FEW_ADVERTISED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_SHARED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_UPLOADED: AbortReason.QUORUM_NOT_REACHED,
        ExchangeFailure.TOO_FEW_CONFIRMED: AbortReason.TOO_FEW_CONFIRMED,
        ExchangeFailure.TOO_FEW_REVEALED: AbortReason.TOO_FEW_REVEALED,
        ExchangeFailure.DEALER_BLAMED: AbortReason.QUORUM_NOT_REACHED,
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
        # Who leaves during an exchange is the exchange's business; its end comes back as an event.
        (_S.EXCHANGING, SiteReported): _stay,
        (_S.EXCHANGING, TimePassed): _stay,
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


def waits_for(status: RoundStatus) -> str:
    """One sentence: what the round waits for."""
    match status.state:
        case RoundState.TRAINING:
            at_work = ", ".join(sorted(site for site, state in status.participations.items() if state.is_at_work))
            return f"Training waits for {at_work}, until {status.deadline_at.isoformat(timespec='seconds')}."
        case RoundState.EXCHANGING:
            return "The secure sum is under way."
        case RoundState.FOLDING:
            return "The new public state is being computed."
        case RoundState.PLANNED:
            return "The round is about to open."
        case _:
            return "The round has ended."
