"""One attempt at a secure sum, as the coordinator sees it.

``ADVERTISING -> SHARING -> COLLECTING -> CONFIRMING -> REVEALING -> SUMMED``; any ``-> FAILED(reason)``. A phase ends
when every expected message is in, or when its deadline passes without progress and enough are in. The sites that were
in are then frozen (U1 to U5) and never change. In REVEALING, U5 is frozen while the sum is being computed.

Time alone ends the first three phases without a sum, and no more than that: whoever uploaded counts its payload as
summed (decision 0012), so that a fresh exchange needs most of the same sites again. CONFIRMING with too few voices
fails only where those that are there may begin afresh; REVEALING waits until a threshold has revealed, or never can
(decision 0015).

Safety: nothing here protects a site; each site checks every set against its own rules. This machine keeps the
coordinator from asking for what honest sites would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from coordinator.errors import IllegalTransitionError
from coordinator.rounds.effects import ComputeSum, DropSites, ExchangeEffect
from coordinator.rounds.events import (
    DealerBlamed,
    EffectGaveUp,
    ExchangeEvent,
    ExchangeFailure,
    KeysAdvertised,
    LiarNamed,
    RunCancelled,
    SharesDealt,
    SharesRevealed,
    SiteReported,
    SumComputed,
    SumRefused,
    SurvivorsConfirmed,
    TimePassed,
    UploadCompleted,
)
from coordinator.rounds.participation_machine import DropReason
from coordinator.rounds.quorum import RoundRules
from fl_protocol.ids import SiteId

REVEAL_GRACE = timedelta(seconds=10)
"""How long the others have to reveal once a threshold did: more shares only help where one of them is false."""


class ExchangeState(StrEnum):
    """The states of an exchange."""

    ADVERTISING = "ADVERTISING"
    SHARING = "SHARING"
    COLLECTING = "COLLECTING"
    CONFIRMING = "CONFIRMING"
    REVEALING = "REVEALING"
    SUMMED = "SUMMED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether no event leads on from here."""
        return self in {ExchangeState.SUMMED, ExchangeState.FAILED}


Sites = tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeStatus:
    """What the machine knows of an exchange.

    Invariant: u1 >= u2 >= u3 >= u4 >= u5 as sets, each None until its phase has ended.

    Attributes:
        state: where it stands.
        invited: the candidates when it opened.
        arrived: whose message of the present phase is stored.
        gone: of whom nothing more is expected in this round.
        away: who may not act now and may be allowed to again: suspended sites whose update is in the sum.
        phase_deadline_at: when the phase ends unless there is progress.
        dealt_quorum: once U2 is frozen, how many the dealers' own thresholds demand; a site may ask for more than we.
        reason: why it FAILED.
    """

    state: ExchangeState
    invited: Sites
    arrived: frozenset[SiteId]
    gone: frozenset[SiteId]
    phase_deadline_at: datetime
    away: frozenset[SiteId] = frozenset()
    dealt_quorum: int = 0
    u1: Sites | None = None
    u2: Sites | None = None
    u3: Sites | None = None
    u4: Sites | None = None
    u5: Sites | None = None
    reason: ExchangeFailure | None = None

    @property
    def expected(self) -> Sites:
        """Who was asked for a message in this phase."""
        asked = {
            ExchangeState.ADVERTISING: self.invited,
            ExchangeState.SHARING: self.u1,
            ExchangeState.COLLECTING: self.u2,
            ExchangeState.CONFIRMING: self.u3,
            ExchangeState.REVEALING: self.u4,
        }
        return asked.get(self.state) or ()

    @property
    def awaited(self) -> Sites:
        """Who was asked, has not answered and may do so now."""
        if self.u5 is not None:
            return ()
        return tuple(site for site in self.expected if site not in self.arrived | self.gone | self.away)

    @property
    def missing(self) -> Sites:
        """Who was asked, has not answered, and could do so now or once it may act again."""
        if self.u5 is not None:
            return ()
        return tuple(site for site in self.expected if site not in self.arrived | self.gone)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeStep:
    """The status that follows, and what is asked for."""

    status: ExchangeStatus
    effects: tuple[ExchangeEffect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """How one phase ends."""

    next_state: ExchangeState
    frozen_as: str
    failure: ExchangeFailure
    drop_reason: DropReason | None


_PHASES: Mapping[ExchangeState, _Phase] = MappingProxyType(
    {
        ExchangeState.ADVERTISING: _Phase(
            next_state=ExchangeState.SHARING,
            frozen_as="u1",
            failure=ExchangeFailure.TOO_FEW_ADVERTISED,
            drop_reason=DropReason.NOT_ADVERTISED,
        ),
        ExchangeState.SHARING: _Phase(
            next_state=ExchangeState.COLLECTING,
            frozen_as="u2",
            failure=ExchangeFailure.TOO_FEW_SHARED,
            drop_reason=DropReason.NOT_SHARED,
        ),
        ExchangeState.COLLECTING: _Phase(
            next_state=ExchangeState.CONFIRMING,
            frozen_as="u3",
            failure=ExchangeFailure.TOO_FEW_UPLOADED,
            drop_reason=DropReason.NOT_UPLOADED,
        ),
        # From here on a silent site's update is in the sum: it is not dropped.
        ExchangeState.CONFIRMING: _Phase(
            next_state=ExchangeState.REVEALING,
            frozen_as="u4",
            failure=ExchangeFailure.TOO_FEW_CONFIRMED,
            drop_reason=None,
        ),
        ExchangeState.REVEALING: _Phase(
            next_state=ExchangeState.REVEALING,
            frozen_as="u5",
            failure=ExchangeFailure.TOO_FEW_REVEALED,
            drop_reason=None,
        ),
    }
)


def needed(status: ExchangeStatus, rules: RoundRules) -> int:
    """How many messages the present phase needs to end well."""
    n = len(status.u1 or ())
    match status.state:
        case ExchangeState.ADVERTISING:
            return rules.min_ready
        case ExchangeState.SHARING:
            return rules.min_sharers(n)
        case ExchangeState.COLLECTING:
            return max(rules.min_survivors(n), status.dealt_quorum)
        case _:
            return max(rules.min_voices(n), status.dealt_quorum)


def _arrive(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    """A message is in: progress, and perhaps the phase's end."""
    assert isinstance(event, KeysAdvertised | SharesDealt | UploadCompleted | SurvivorsConfirmed | SharesRevealed)
    arrived = replace(status, arrived=status.arrived | {event.site_id})
    deadline = max(status.phase_deadline_at, now + rules.phase_deadline)
    if status.state is ExchangeState.REVEALING and len(_kept(arrived)) >= needed(arrived, rules):
        deadline = min(deadline, now + REVEAL_GRACE)
    return _settle(replace(arrived, phase_deadline_at=deadline), event, rules=rules, now=now)


def _settle(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    """End the phase if nobody is awaited or its time is over; else stay."""
    del event
    phase = _PHASES[status.state]
    if status.u5 is not None:
        return ExchangeStep(status=status)
    is_over = not status.awaited or now >= status.phase_deadline_at
    n_possible = sum(1 for site in status.expected if site in status.arrived or site not in status.gone)
    if not is_over and n_possible >= needed(status, rules):
        return ExchangeStep(status=status)
    kept = _kept(status)
    if len(kept) < needed(status, rules) <= n_possible and not _may_fail_by_time(status, rules):
        return ExchangeStep(status=status)
    silent = tuple(sorted(status.awaited)) if is_over else ()
    drops: tuple[ExchangeEffect, ...] = ()
    if silent and phase.drop_reason is not None:
        drops = (DropSites(sites=silent, reason=phase.drop_reason),)
    if len(kept) < needed(status, rules):
        return ExchangeStep(status=replace(status, state=ExchangeState.FAILED, reason=phase.failure), effects=drops)
    following = _freeze(status, phase, kept, deadline=now + rules.phase_deadline)
    if status.state is ExchangeState.REVEALING:
        return ExchangeStep(status=following, effects=(ComputeSum(),))
    return ExchangeStep(status=following, effects=drops)


def _may_fail_by_time(status: ExchangeStatus, rules: RoundRules) -> bool:
    """Whether a phase that is over with too few, but could still get enough, is better given up than waited for.

    Safety: honest sites refuse a fresh exchange among so few of the cohort that the others could still unmask the
    earlier sum without them. Where they would, waiting is all there is; and once shares were asked for, it always is.
    """
    match status.state:
        case ExchangeState.REVEALING:
            return False
        case ExchangeState.CONFIRMING:
            n = len(status.u1 or ())
            n_here = len(_kept(status))
            return n_here >= rules.min_ready and n_here > rules.params.max_left_over(n)
        case _:
            return True


def _kept(status: ExchangeStatus) -> Sites:
    return tuple(sorted(site for site in status.expected if site in status.arrived and _counts(status, site)))


def _counts(status: ExchangeStatus, site: SiteId) -> bool:
    """A message counts though its sender left; after keys or shares, though, it would be missed at the next step."""
    early = status.state in {ExchangeState.ADVERTISING, ExchangeState.SHARING}
    return not early or site not in status.gone


def _freeze(status: ExchangeStatus, phase: _Phase, kept: Sites, *, deadline: datetime) -> ExchangeStatus:
    following = replace(status, state=phase.next_state, arrived=frozenset(), phase_deadline_at=deadline)
    match phase.frozen_as:
        case "u1":
            return replace(following, u1=kept)
        case "u2":
            return replace(following, u2=kept)
        case "u3":
            return replace(following, u3=kept)
        case "u4":
            return replace(following, u4=kept)
        case _:
            return replace(following, u5=kept)


def _stay(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del event, rules, now
    return ExchangeStep(status=status)


def _fail_by_dealer(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del event, rules, now
    return ExchangeStep(status=replace(status, state=ExchangeState.FAILED, reason=ExchangeFailure.DEALER_BLAMED))


def _fail_by_refusal(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del rules, now
    assert isinstance(event, SumRefused)
    return ExchangeStep(status=replace(status, state=ExchangeState.FAILED, reason=event.reason))


def _fail_by_effect(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del event, rules, now
    return ExchangeStep(status=replace(status, state=ExchangeState.FAILED, reason=ExchangeFailure.EFFECT_FAILED))


def _end(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del event, rules, now
    return ExchangeStep(status=replace(status, state=ExchangeState.FAILED, reason=ExchangeFailure.ROUND_ENDED))


def _sum(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    del rules, now
    if status.u5 is None:
        raise IllegalTransitionError(
            "no sum was asked for yet", machine="exchange", state=status.state.value, event=type(event).__name__
        )
    return ExchangeStep(status=replace(status, state=ExchangeState.SUMMED))


def _name_liar(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    assert isinstance(event, LiarNamed)
    named = replace(status, gone=status.gone | {event.site_id}, arrived=status.arrived - {event.site_id})
    return _settle(named, event, rules=rules, now=now)


_Apply = Callable[..., ExchangeStep]

_S = ExchangeState
_AFTER_SHARING = (_S.COLLECTING, _S.CONFIRMING, _S.REVEALING)
_MAY_COME_AFTER_THE_END: tuple[type[ExchangeEvent], ...] = (
    KeysAdvertised,
    SharesDealt,
    UploadCompleted,
    SurvivorsConfirmed,
    SharesRevealed,
    LiarNamed,
    DealerBlamed,
    SiteReported,
    RunCancelled,
    TimePassed,
)
TRANSITIONS: Mapping[tuple[ExchangeState, type[ExchangeEvent]], _Apply] = MappingProxyType(
    {
        (_S.ADVERTISING, KeysAdvertised): _arrive,
        (_S.SHARING, SharesDealt): _arrive,
        (_S.COLLECTING, UploadCompleted): _arrive,
        (_S.CONFIRMING, SurvivorsConfirmed): _arrive,
        (_S.REVEALING, SharesRevealed): _arrive,
        (_S.REVEALING, LiarNamed): _name_liar,
        (_S.REVEALING, SumComputed): _sum,
        (_S.REVEALING, SumRefused): _fail_by_refusal,
        (_S.REVEALING, EffectGaveUp): _fail_by_effect,
        (_S.SHARING, DealerBlamed): _fail_by_dealer,
        (_S.COLLECTING, DealerBlamed): _fail_by_dealer,
        **{(state, SiteReported): _settle for state in _PHASES},
        **{(state, TimePassed): _settle for state in _PHASES},
        **{(state, RunCancelled): _end for state in _PHASES},
        # Nothing is revealed yet, so a complaint that was overtaken by the last upload still ends the attempt.
        (_S.CONFIRMING, DealerBlamed): _fail_by_dealer,
        (_S.REVEALING, DealerBlamed): _stay,
        # A message that was stored in time, whose phase ended over an event before it: its sender had left.
        (_S.SHARING, KeysAdvertised): _stay,
        **{(state, KeysAdvertised): _stay for state in _AFTER_SHARING},
        **{(state, SharesDealt): _stay for state in _AFTER_SHARING},
        (_S.CONFIRMING, UploadCompleted): _stay,
        (_S.REVEALING, UploadCompleted): _stay,
        (_S.REVEALING, SurvivorsConfirmed): _stay,
        **{(state, event): _stay for state in (_S.SUMMED, _S.FAILED) for event in _MAY_COME_AFTER_THE_END},
    }
)


def step_exchange(status: ExchangeStatus, event: ExchangeEvent, *, rules: RoundRules, now: datetime) -> ExchangeStep:
    """The status that follows, and what is asked for.

    Raises:
        IllegalTransitionError: the table does not list the pair.
    """
    apply = TRANSITIONS.get((status.state, type(event)))
    if apply is None:
        raise IllegalTransitionError(
            "the exchange's state does not permit this",
            machine="exchange",
            state=status.state.value,
            event=type(event).__name__,
        )
    return apply(status, event, rules=rules, now=now)
