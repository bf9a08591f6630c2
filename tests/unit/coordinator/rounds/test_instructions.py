from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.rounds.events import MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.instructions import (
    DueAbandon,
    DueExchange,
    DueResult,
    DueTraining,
    ExchangeTask,
    ExchangeView,
    RoundRef,
    RoundView,
    derive_due,
)
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.round_machine import RoundState
from fl_protocol.ids import RunId


def ref(index: int = 0, *, run: str = "a") -> RoundRef:
    return RoundRef(run_id=RunId("run-" + run * 26), round_index=index, round_attempt=0)


def view(
    state: RoundState,
    participation: ParticipationState = ParticipationState.READY,
    *,
    why: str = "site-not-active",
    index: int = 0,
    exchange: ExchangeView | None = None,
    acknowledged: bool = False,
    run: str = "a",
) -> RoundView:
    return RoundView(
        ref=ref(index, run=run),
        state=state,
        reason="quorum-not-reached" if state is RoundState.ABORTED else None,
        participation=participation,
        participation_reason=why if participation.is_gone else None,
        is_acknowledged=acknowledged,
        exchange=exchange,
    )


def exchange(
    state: ExchangeState, *, asked: bool = True, survivor: bool = False, sent: frozenset[MessageKind] = frozenset()
) -> ExchangeView:
    return ExchangeView(
        exchange_index=0, exchange_attempt=1, state=state, is_asked=asked, is_survivor=survivor, sent=sent
    )


@pytest.mark.parametrize(
    ("state", "task", "answer"),
    [
        (ExchangeState.ADVERTISING, ExchangeTask.ADVERTISE, MessageKind.M1),
        (ExchangeState.SHARING, ExchangeTask.SHARE, MessageKind.M3),
        (ExchangeState.COLLECTING, ExchangeTask.UPLOAD, MessageKind.M5),
        (ExchangeState.CONFIRMING, ExchangeTask.CONFIRM, MessageKind.M7),
        (ExchangeState.REVEALING, ExchangeTask.REVEAL, MessageKind.M9),
    ],
)
def test_exchange_step_is_due_until_it_was_answered(
    state: ExchangeState, task: ExchangeTask, answer: MessageKind
) -> None:
    due = derive_due([view(RoundState.EXCHANGING, exchange=exchange(state))], holding=[])
    assert due == DueExchange(ref=ref(), exchange_index=0, exchange_attempt=1, task=task)
    answered = exchange(state, sent=frozenset({answer}))
    assert derive_due([view(RoundState.EXCHANGING, exchange=answered)], holding=[]) is None
    not_asked = exchange(state, asked=False)
    assert derive_due([view(RoundState.EXCHANGING, exchange=not_asked)], holding=[]) is None


def test_site_that_complained_is_asked_for_nothing_more_in_this_exchange() -> None:
    complained = exchange(ExchangeState.COLLECTING, sent=frozenset({MessageKind.COMPLAINT}))
    assert derive_due([view(RoundState.EXCHANGING, exchange=complained)], holding=[]) is None


def test_training_is_due_to_the_invited_and_to_those_who_forgot() -> None:
    invited = view(RoundState.TRAINING, ParticipationState.INVITED)
    training = view(RoundState.TRAINING, ParticipationState.TRAINING)
    assert derive_due([invited], holding=[]) == DueTraining(ref=ref())
    assert derive_due([invited], holding=[ref()]) == DueTraining(ref=ref())
    assert derive_due([training], holding=[]) == DueTraining(ref=ref())
    assert derive_due([training], holding=[ref()]) is None
    assert derive_due([view(RoundState.TRAINING)], holding=[]) is None


def test_aborted_round_is_abandoned_only_by_who_holds_it() -> None:
    aborted = view(RoundState.ABORTED)
    assert derive_due([aborted], holding=[ref()]) == DueAbandon(ref=ref(), reason="quorum-not-reached")
    assert derive_due([aborted], holding=[]) is None


def test_dropped_site_abandons_the_round_unless_its_update_is_in_the_sum() -> None:
    gone = view(RoundState.EXCHANGING, ParticipationState.DROPPED, exchange=exchange(ExchangeState.COLLECTING))
    assert derive_due([gone], holding=[ref()]) == DueAbandon(ref=ref(), reason="site-not-active")
    survivor = exchange(ExchangeState.REVEALING, survivor=True)
    summed = view(RoundState.EXCHANGING, ParticipationState.REJECTED, exchange=survivor)
    assert derive_due([summed], holding=[ref()]) is None


@pytest.mark.parametrize("why", ["silent-in-advertising", "silent-in-sharing", "silent-in-collecting"])
def test_site_that_was_silent_keeps_its_payload_while_the_exchange_may_fail(why: str) -> None:
    open_exchange = exchange(ExchangeState.COLLECTING, asked=False)
    silent = view(RoundState.EXCHANGING, ParticipationState.DROPPED, why=why, exchange=open_exchange)
    assert derive_due([silent], holding=[ref()]) is None
    folding = view(RoundState.FOLDING, ParticipationState.DROPPED, why=why, exchange=open_exchange)
    assert derive_due([folding], holding=[ref()]) == DueAbandon(ref=ref(), reason=why)


def test_result_of_a_round_that_is_held_comes_before_training_and_abandoning_before_both() -> None:
    committed = view(
        RoundState.COMMITTED, ParticipationState.COUNTED, exchange=exchange(ExchangeState.SUMMED, survivor=True)
    )
    invited = view(RoundState.TRAINING, ParticipationState.INVITED, index=1)
    due = DueResult(ref=ref(), exchange_index=0, exchange_attempt=1)
    assert derive_due([invited, committed], holding=[ref()]) == due
    assert derive_due([committed], holding=[]) == due
    assert derive_due([invited, committed], holding=[ref(7)], unknown=[ref(7)]) == DueAbandon(
        ref=ref(7), reason="round-unknown"
    )


@pytest.mark.parametrize("state", [RoundState.TRAINING, RoundState.EXCHANGING])
def test_result_that_a_site_may_refuse_for_ever_keeps_no_other_run_waiting(state: RoundState) -> None:
    # Refused: the site does not hold the round any more, and does not acknowledge it either.
    refused = view(
        RoundState.COMMITTED, ParticipationState.COUNTED, exchange=exchange(ExchangeState.SUMMED, survivor=True)
    )
    asks = exchange(ExchangeState.ADVERTISING) if state is RoundState.EXCHANGING else None
    joined = ParticipationState.INVITED if asks is None else ParticipationState.READY
    other = view(state, joined, exchange=asks, run="b")
    due = derive_due([refused, other], holding=[])
    assert due is not None
    assert due.ref == ref(run="b")


def test_result_that_was_scrubbed_is_given_to_nobody_and_its_round_abandoned_by_who_holds_it() -> None:
    scrubbed = replace(exchange(ExchangeState.SUMMED, survivor=True), is_result_scrubbed=True)
    late = view(RoundState.COMMITTED, ParticipationState.COUNTED, exchange=scrubbed)
    assert derive_due([late], holding=[]) is None
    assert derive_due([late], holding=[ref()]) == DueAbandon(ref=ref(), reason="result-scrubbed")


def test_committed_round_is_over_for_who_acknowledged_and_for_who_was_not_counted() -> None:
    summed = exchange(ExchangeState.SUMMED, survivor=True)
    done = view(RoundState.COMMITTED, ParticipationState.COUNTED, exchange=summed, acknowledged=True)
    assert derive_due([done], holding=[ref()]) is None
    outside = view(RoundState.COMMITTED, ParticipationState.READY, exchange=exchange(ExchangeState.SUMMED))
    assert derive_due([outside], holding=[ref()]) == DueAbandon(ref=ref(), reason="not-counted")
