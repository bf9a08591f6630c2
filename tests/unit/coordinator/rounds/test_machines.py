"""Every pair of state and event is either in a table or refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest

from coordinator.errors import IllegalTransitionError
from coordinator.rounds import events, exchange_machine, participation_machine, round_machine, run_machine
from coordinator.rounds.cohort import exchange_candidates, invited_sites
from coordinator.rounds.effects import (
    CommitRound,
    ComputeSum,
    DropSites,
    EndExchange,
    FoldRound,
    OpenExchange,
    ReturnSites,
)
from coordinator.rounds.events import AbortReason, ExchangeFailure
from coordinator.rounds.exchange_machine import REVEAL_GRACE, ExchangeState, ExchangeStatus, step_exchange
from coordinator.rounds.participation_machine import DropReason
from coordinator.rounds.participation_machine import ParticipationState as P
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.round_machine import ENOUGH_GRACE, RoundState, RoundStatus, step_round
from fl_protocol.ids import SiteId
from fl_protocol.spec.secagg_params import SecAggParams

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
RULES = RoundRules(
    quorum=3, params=SecAggParams(), round_deadline=timedelta(hours=1), phase_deadline=timedelta(seconds=30)
)
SITES = tuple(SiteId(name) for name in ("a", "b", "c", "d", "e"))
A, B, C, D, E = SITES

EXAMPLES = {
    events.RoundOpened: events.RoundOpened(),
    events.SiteReported: events.SiteReported(site_id=A),
    events.TimePassed: events.TimePassed(),
    events.RunCancelled: events.RunCancelled(),
    events.EffectGaveUp: events.EffectGaveUp(),
    events.KeysAdvertised: events.KeysAdvertised(site_id=A),
    events.SharesDealt: events.SharesDealt(site_id=A),
    events.UploadCompleted: events.UploadCompleted(site_id=A),
    events.SurvivorsConfirmed: events.SurvivorsConfirmed(site_id=A),
    events.SharesRevealed: events.SharesRevealed(site_id=A),
    events.LiarNamed: events.LiarNamed(site_id=A),
    events.DealerBlamed: events.DealerBlamed(dealer=A),
    events.SumComputed: events.SumComputed(),
    events.SumRefused: events.SumRefused(reason=ExchangeFailure.IMPLAUSIBLE_SUM),
    events.ExchangeSummed: events.ExchangeSummed(),
    events.ExchangeFailed: events.ExchangeFailed(reason=ExchangeFailure.TOO_FEW_SHARED, may_be_repeated=True),
    events.RoundFolded: events.RoundFolded(),
    events.FoldRefused: events.FoldRefused(),
}


def exchange(state: ExchangeState, **changes: object) -> ExchangeStatus:
    """A status of five sites in which every earlier set holds all of them."""
    order = list(ExchangeState)
    done = order.index(state)
    sets = {f"u{i}": SITES if done >= i else None for i in range(1, 5)}
    values: dict[str, object] = {
        "state": state,
        "invited": SITES,
        "arrived": frozenset(),
        "gone": frozenset(),
        "phase_deadline_at": LATER,
        "u5": SITES if state is ExchangeState.SUMMED else None,
        **sets,
        **changes,
    }
    return ExchangeStatus(**values)  # type: ignore[arg-type]


def a_round(state: RoundState, *states: P, deadline_at: datetime = LATER, attempt: int = 0) -> RoundStatus:
    given = states or (P.READY,) * 5
    return RoundStatus(
        state=state,
        participations=dict(zip(SITES, given, strict=False)),
        deadline_at=deadline_at,
        exchange_attempt=attempt,
    )


@pytest.mark.parametrize(("state", "event"), list(product(run_machine.RunState, run_machine.RunEvent)))
def test_run_pair_is_listed_or_refused(state: run_machine.RunState, event: run_machine.RunEvent) -> None:
    if (state, event) in run_machine.TRANSITIONS:
        assert run_machine.step_run(state, event) is run_machine.TRANSITIONS[(state, event)]
        assert not state.is_final
    else:
        with pytest.raises(IllegalTransitionError):
            run_machine.step_run(state, event)


@pytest.mark.parametrize(("state", "event"), list(product(P, participation_machine.ParticipationEvent)))
def test_participation_pair_is_listed_or_refused(state: P, event: participation_machine.ParticipationEvent) -> None:
    if (state, event) in participation_machine.TRANSITIONS:
        assert participation_machine.step_participation(state, event) in P
    else:
        with pytest.raises(IllegalTransitionError):
            participation_machine.step_participation(state, event)


def test_counted_participation_is_the_end() -> None:
    assert not [pair for pair in participation_machine.TRANSITIONS if pair[0] is P.COUNTED]


@pytest.mark.parametrize(("state", "event"), list(product(ExchangeState, get_args(events.ExchangeEvent))))
def test_exchange_pair_is_listed_or_refused(state: ExchangeState, event: type) -> None:
    status = exchange(state, u5=SITES if event is events.SumComputed else None)
    if (state, event) in exchange_machine.TRANSITIONS:
        following = step_exchange(status, EXAMPLES[event], rules=RULES, now=NOW).status
        assert following.state in ExchangeState
        if state.is_final:
            assert following == status
    else:
        with pytest.raises(IllegalTransitionError):
            step_exchange(status, EXAMPLES[event], rules=RULES, now=NOW)


@pytest.mark.parametrize(("state", "event"), list(product(RoundState, get_args(events.RoundEvent))))
def test_round_pair_is_listed_or_refused(state: RoundState, event: type) -> None:
    if (state, event) in round_machine.TRANSITIONS:
        assert step_round(a_round(state), EXAMPLES[event], rules=RULES, now=NOW).status.state in RoundState
    else:
        with pytest.raises(IllegalTransitionError):
            step_round(a_round(state), EXAMPLES[event], rules=RULES, now=NOW)


@pytest.mark.parametrize("state", [RoundState.COMMITTED, RoundState.ABORTED])
def test_ended_round_hears_of_nothing(state: RoundState) -> None:
    assert not [pair for pair in round_machine.TRANSITIONS if pair[0] is state]


# Training


def test_training_goes_on_while_somebody_is_at_work_and_time_is_left() -> None:
    status = a_round(RoundState.TRAINING, P.READY, P.READY, P.READY, P.TRAINING, P.INVITED)
    step = step_round(status, events.TimePassed(), rules=RULES, now=NOW)
    assert step.status == status
    assert step.effects == ()


def test_training_ends_when_nobody_is_at_work_and_opens_an_exchange_among_the_ready() -> None:
    status = a_round(RoundState.TRAINING, P.READY, P.DECLINED, P.READY, P.READY, P.DROPPED)
    step = step_round(status, events.SiteReported(site_id=A), rules=RULES, now=NOW)
    assert step.status.state is RoundState.EXCHANGING
    assert step.effects == (OpenExchange(exchange_index=0, exchange_attempt=0, invited=(A, C, D)),)


def test_training_at_its_deadline_drops_those_still_at_work() -> None:
    status = a_round(RoundState.TRAINING, P.READY, P.TRAINING, P.READY, P.READY, P.INVITED, deadline_at=NOW)
    step = step_round(status, events.TimePassed(), rules=RULES, now=NOW)
    drop = step.effects[0]
    assert isinstance(drop, DropSites)
    assert drop.sites == (B, E)
    assert step.status.state is RoundState.EXCHANGING


def changed(*seconds_ago: float) -> dict[SiteId, datetime]:
    return {site: NOW - timedelta(seconds=ago) for site, ago in zip(SITES, seconds_ago, strict=False)}


def test_training_past_its_deadline_waits_for_who_still_steps() -> None:
    states = (P.READY, P.TRAINING, P.READY, P.READY, P.TRAINING)
    idle = RULES.phase_deadline.total_seconds()
    status = replace(
        a_round(RoundState.TRAINING, *states, deadline_at=NOW), changed_at=changed(99, idle, 99, 99, idle - 1)
    )
    step = step_round(status, events.TimePassed(), rules=RULES, now=NOW)
    assert step.status.state is RoundState.TRAINING
    assert step.effects == (DropSites(sites=(B,), reason=DropReason.NOT_READY),)


def test_training_before_its_deadline_gives_nobody_up() -> None:
    status = replace(
        a_round(RoundState.TRAINING, P.READY, P.TRAINING, P.READY, P.READY, P.INVITED),
        changed_at=changed(9999, 9999, 9999, 9999, 9999),
    )
    assert step_round(status, events.TimePassed(), rules=RULES, now=NOW).effects == ()


@pytest.mark.parametrize("states", [(P.READY, P.TRAINING, P.READY, P.READY, P.INVITED)])
def test_training_with_enough_ready_closes_after_the_grace_and_tells_the_rest(states: tuple[P, ...]) -> None:
    rules = replace(RULES, enough=3)
    grace = ENOUGH_GRACE.total_seconds()
    early = replace(a_round(RoundState.TRAINING, *states), changed_at=changed(60, 0, 60, grace - 1, 0))
    assert step_round(early, events.TimePassed(), rules=rules, now=NOW).status.state is RoundState.TRAINING
    due = replace(early, changed_at=changed(60, 0, 60, grace, 0))
    step = step_round(due, events.TimePassed(), rules=rules, now=NOW)
    drop, opened = step.effects
    assert drop == DropSites(sites=(B, E), reason=DropReason.ENOUGH)
    assert opened == OpenExchange(exchange_index=0, exchange_attempt=0, invited=(A, C, D))
    assert step_round(due, events.TimePassed(), rules=RULES, now=NOW).effects == ()


@pytest.mark.parametrize("late", [True, False])
def test_training_that_can_no_longer_reach_the_quorum_aborts(late: bool) -> None:
    states = (P.READY, P.DECLINED, P.DROPPED, P.DECLINED, P.TRAINING)
    status = a_round(RoundState.TRAINING, *states, deadline_at=NOW if late else LATER)
    step = step_round(status, events.TimePassed(), rules=RULES, now=NOW)
    assert step.status.state is RoundState.ABORTED
    assert step.status.reason is AbortReason.QUORUM_NOT_REACHED
    assert step.effects[-1] == EndExchange()


# Exchange


def test_phase_ends_when_all_are_in_and_freezes_them() -> None:
    status = exchange(ExchangeState.ADVERTISING, arrived=frozenset({B, C, D, E}))
    step = step_exchange(status, events.KeysAdvertised(site_id=A), rules=RULES, now=NOW)
    assert step.status.state is ExchangeState.SHARING
    assert step.status.u1 == SITES
    assert step.status.arrived == frozenset()
    assert step.status.phase_deadline_at == NOW + RULES.phase_deadline


def test_phase_waits_for_those_who_may_still_come() -> None:
    status = exchange(ExchangeState.SHARING, arrived=frozenset({B, C, D}))
    step = step_exchange(status, events.SharesDealt(site_id=A), rules=RULES, now=NOW)
    assert step.status.state is ExchangeState.SHARING
    assert step.status.awaited == (E,)


def test_progress_puts_the_deadline_off() -> None:
    status = exchange(ExchangeState.COLLECTING, phase_deadline_at=NOW + timedelta(seconds=1))
    step = step_exchange(status, events.UploadCompleted(site_id=A), rules=RULES, now=NOW)
    assert step.status.phase_deadline_at == NOW + RULES.phase_deadline


def test_phase_at_its_deadline_goes_on_with_enough_and_drops_the_silent() -> None:
    status = exchange(ExchangeState.COLLECTING, arrived=frozenset({A, B, C, D}), phase_deadline_at=NOW)
    step = step_exchange(status, events.TimePassed(), rules=RULES, now=NOW)
    assert step.status.u3 == (A, B, C, D)
    assert [effect.sites for effect in step.effects if isinstance(effect, DropSites)] == [(E,)]


def test_phase_at_its_deadline_fails_with_too_few() -> None:
    # Five in U1: the threshold is floor(10/3) + 1 = 4.
    status = exchange(ExchangeState.COLLECTING, arrived=frozenset({A, B, C}), phase_deadline_at=NOW)
    step = step_exchange(status, events.TimePassed(), rules=RULES, now=NOW)
    assert (step.status.state, step.status.reason) == (ExchangeState.FAILED, ExchangeFailure.TOO_FEW_UPLOADED)


def test_dealers_higher_threshold_is_respected() -> None:
    status = exchange(ExchangeState.COLLECTING, arrived=frozenset({A, B, C, D}), phase_deadline_at=NOW, dealt_quorum=5)
    step = step_exchange(status, events.TimePassed(), rules=RULES, now=NOW)
    assert (step.status.state, step.status.reason) == (ExchangeState.FAILED, ExchangeFailure.TOO_FEW_UPLOADED)


# Five in U1: t = floor(10/3) + 1 = 4, so that 5 - 4 = 1 of them may be left over for a fresh exchange to be refused.


def test_confirming_without_a_threshold_is_given_up_where_those_who_are_there_may_begin_afresh() -> None:
    status = exchange(ExchangeState.CONFIRMING, arrived=frozenset({A, B, C}), phase_deadline_at=NOW)
    step = step_exchange(status, events.TimePassed(), rules=RULES, now=NOW)
    assert (step.status.state, step.status.reason) == (ExchangeState.FAILED, ExchangeFailure.TOO_FEW_CONFIRMED)


def test_confirming_waits_past_its_deadline_where_a_fresh_exchange_would_not_have_enough() -> None:
    status = exchange(ExchangeState.CONFIRMING, arrived=frozenset({A, B}), phase_deadline_at=NOW)
    step = step_exchange(status, events.TimePassed(), rules=RULES, now=NOW + timedelta(days=3))
    assert step.status == status
    back = step_exchange(status, events.SurvivorsConfirmed(site_id=C), rules=RULES, now=NOW + timedelta(days=3))
    assert back.status.state is ExchangeState.CONFIRMING


def test_confirming_waits_where_honest_sites_would_refuse_a_fresh_exchange() -> None:
    # Twelve in U1: t = 9, so that of three who begin afresh the nine others could still unmask the earlier sum.
    sites = tuple(SiteId(f"s{i:02}") for i in range(12))
    sets = dict.fromkeys(("invited", "u1", "u2", "u3"), sites)
    three = exchange(ExchangeState.CONFIRMING, **sets, arrived=frozenset(sites[:3]), phase_deadline_at=NOW)
    assert step_exchange(three, events.TimePassed(), rules=RULES, now=NOW).status == three
    four = replace(three, arrived=frozenset(sites[:4]))
    assert step_exchange(four, events.TimePassed(), rules=RULES, now=NOW).status.state is ExchangeState.FAILED


def test_revealing_is_never_ended_by_time() -> None:
    status = exchange(ExchangeState.REVEALING, arrived=frozenset({A, B, C}), phase_deadline_at=NOW)
    assert step_exchange(status, events.TimePassed(), rules=RULES, now=NOW + timedelta(days=30)).status == status
    two_revoked = replace(status, gone=frozenset({D, E}))
    step = step_exchange(two_revoked, events.TimePassed(), rules=RULES, now=NOW)
    assert step.status.reason is ExchangeFailure.TOO_FEW_REVEALED


def test_suspended_survivors_are_not_waited_for_where_the_others_suffice_and_are_where_not() -> None:
    suffice = exchange(ExchangeState.REVEALING, arrived=frozenset({A, B, C, D}), away=frozenset({E}))
    assert suffice.awaited == ()
    assert step_exchange(suffice, events.TimePassed(), rules=RULES, now=NOW).status.u5 == (A, B, C, D)
    too_few = exchange(ExchangeState.REVEALING, arrived=frozenset({A, B, C}), away=frozenset({D, E}))
    assert step_exchange(too_few, events.TimePassed(), rules=RULES, now=LATER).status == too_few
    assert too_few.missing == (D, E)


def test_reveals_of_a_threshold_give_the_others_a_short_grace_only() -> None:
    status = exchange(ExchangeState.REVEALING, arrived=frozenset({A, B, C}))
    step = step_exchange(status, events.SharesRevealed(site_id=D), rules=RULES, now=NOW)
    assert step.status.phase_deadline_at == NOW + REVEAL_GRACE
    assert step.status.u5 is None
    over = step_exchange(step.status, events.TimePassed(), rules=RULES, now=NOW + REVEAL_GRACE)
    assert over.status.u5 == (A, B, C, D)


def test_quorum_above_the_threshold_is_respected_when_survivors_are_frozen() -> None:
    rules = RoundRules(
        quorum=5, params=SecAggParams(), round_deadline=RULES.round_deadline, phase_deadline=RULES.phase_deadline
    )
    status = exchange(ExchangeState.COLLECTING, arrived=frozenset({A, B, C, D}), phase_deadline_at=NOW)
    assert step_exchange(status, events.TimePassed(), rules=rules, now=NOW).status.state is ExchangeState.FAILED


def test_phase_that_can_no_longer_succeed_fails_before_its_deadline() -> None:
    status = exchange(ExchangeState.SHARING, gone=frozenset({A, B}))
    step = step_exchange(status, events.SiteReported(site_id=B), rules=RULES, now=NOW)
    assert step.status.reason is ExchangeFailure.TOO_FEW_SHARED


def test_reveals_of_all_but_a_liar_ask_for_the_sum_once() -> None:
    status = exchange(ExchangeState.REVEALING, arrived=frozenset({B, C, D, E}))
    step = step_exchange(status, events.LiarNamed(site_id=A), rules=RULES, now=NOW)
    assert step.status.u5 == (B, C, D, E)
    assert step.effects == (ComputeSum(),)
    again = step_exchange(step.status, events.TimePassed(), rules=RULES, now=LATER + RULES.phase_deadline)
    assert again.status == step.status
    assert again.effects == ()


def test_sum_before_it_was_asked_for_is_refused() -> None:
    with pytest.raises(IllegalTransitionError):
        step_exchange(exchange(ExchangeState.REVEALING), events.SumComputed(), rules=RULES, now=NOW)


def test_failed_exchange_is_repeated_among_the_candidates_at_most_three_times() -> None:
    failed = events.ExchangeFailed(reason=ExchangeFailure.DEALER_BLAMED, may_be_repeated=True)
    states = (P.UPLOADED, P.REJECTED, P.KEYED, P.READY, P.DROPPED)
    step = step_round(a_round(RoundState.EXCHANGING, *states), failed, rules=RULES, now=NOW)
    assert step.effects == (OpenExchange(exchange_index=0, exchange_attempt=1, invited=(A, C, D)),)
    last = step_round(a_round(RoundState.EXCHANGING, *states, attempt=2), failed, rules=RULES, now=NOW)
    assert last.status.reason is AbortReason.DEALER_BLAMED
    silence = events.ExchangeFailed(reason=ExchangeFailure.TOO_FEW_SHARED, may_be_repeated=True)
    last = step_round(a_round(RoundState.EXCHANGING, *states, attempt=2), silence, rules=RULES, now=NOW)
    assert last.status.reason is AbortReason.EXCHANGE_ATTEMPTS_EXHAUSTED


FAILED_FOR_SILENCE = events.ExchangeFailed(reason=ExchangeFailure.TOO_FEW_UPLOADED, may_be_repeated=True)


def test_fresh_exchange_takes_in_who_came_back_and_leaves_out_who_is_away() -> None:
    states = (P.UPLOADED, P.DROPPED, P.KEYED, P.READY, P.DECLINED)
    status = replace(a_round(RoundState.EXCHANGING, *states), silent=frozenset({B}), away=frozenset({D}))
    step = step_round(status, FAILED_FOR_SILENCE, rules=RULES, now=NOW)
    opened = OpenExchange(exchange_index=0, exchange_attempt=1, invited=(A, B, C))
    assert step.effects == (ReturnSites(sites=(B,)), opened)
    assert step.status.exchange_attempt == 1


def test_round_whose_sites_are_away_keeps_its_payloads_for_as_long_as_training_was_given() -> None:
    states = (P.UPLOADED, P.DROPPED, P.KEYED, P.DECLINED, P.DECLINED)
    status = replace(a_round(RoundState.EXCHANGING, *states), silent=frozenset({B}), away=frozenset({B}))
    step = step_round(status, FAILED_FOR_SILENCE, rules=RULES, now=NOW)
    assert (step.status.state, step.effects) == (RoundState.EXCHANGING, ())
    waiting = step.status
    last_moment = NOW + RULES.round_deadline - timedelta(seconds=1)
    assert step_round(waiting, events.TimePassed(), rules=RULES, now=last_moment).status == waiting
    back = step_round(replace(waiting, away=frozenset()), events.TimePassed(), rules=RULES, now=last_moment)
    assert back.effects[0] == ReturnSites(sites=(B,))
    over = step_round(waiting, events.TimePassed(), rules=RULES, now=NOW + RULES.round_deadline)
    assert over.status.reason is AbortReason.QUORUM_NOT_REACHED


def test_exchange_that_failed_after_shares_were_asked_for_ends_the_round() -> None:
    failed = events.ExchangeFailed(reason=ExchangeFailure.IMPLAUSIBLE_SUM, may_be_repeated=False)
    step = step_round(a_round(RoundState.EXCHANGING), failed, rules=RULES, now=NOW)
    assert step.status.reason is AbortReason.IMPLAUSIBLE_SUM


def test_summed_exchange_is_folded_then_committed() -> None:
    folding = step_round(a_round(RoundState.EXCHANGING), events.ExchangeSummed(), rules=RULES, now=NOW)
    assert folding.effects == (FoldRound(),)
    committed = step_round(folding.status, events.RoundFolded(), rules=RULES, now=NOW)
    assert committed.status.state is RoundState.COMMITTED
    assert committed.effects == (CommitRound(),)


# Cohort


def test_invited_sites_are_the_approved_and_active_of_the_roster() -> None:
    assert invited_sites([C, A, B, D], approved=[A, B, C], active=[B, C, E]) == (B, C)


def test_exchange_candidates_are_those_with_a_payload() -> None:
    states = dict(zip(SITES, (P.READY, P.TRAINING, P.UPLOADED, P.REJECTED, P.KEYED), strict=True))
    assert exchange_candidates(states) == (A, C, E)
