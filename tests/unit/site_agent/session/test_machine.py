"""The session machine: its path through a round, what it repeats and refuses, and that nothing else is possible."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fl_protocol.ids import RunId
from fl_protocol.spec.context import ExchangeContext, RoundContext
from site_agent.errors import IllegalTransitionError
from site_agent.session import commands as do
from site_agent.session import events as on
from site_agent.session.events import DeclineKind, SessionEvent, Step
from site_agent.session.machine import (
    PHASE_AFTER,
    TABLE,
    TERMINAL,
    RoundSession,
    SessionPhase,
    open_session,
    step,
)

ROUND = RoundContext(run_id=RunId("run-" + "a" * 26), round_index=2, round_attempt=1)
INPUTS = {Step.ADVERTISE: "", Step.SHARE: "m2", Step.MASK: "m4", Step.CONFIRM: "m6", Step.REVEAL: "m8"}
RELAYS = {
    Step.SHARE: on.KeysRelayed,
    Step.MASK: on.SharesRelayed,
    Step.CONFIRM: on.SurvivorsRelayed,
    Step.REVEAL: on.ConfirmationsRelayed,
}


def exchange(attempt: int = 0, *, round_index: int = 2) -> ExchangeContext:
    return ExchangeContext(
        run_id=ROUND.run_id, round_index=round_index, round_attempt=1, exchange_index=0, exchange_attempt=attempt
    )


def request(asked: Step, *, attempt: int = 0, content: str | None = None) -> SessionEvent:
    if asked is Step.ADVERTISE:
        return on.ExchangeOpened(context=exchange(attempt))
    return RELAYS[asked](context=exchange(attempt), input_sha256=content or INPUTS[asked])


def taken(asked: Step, *, attempt: int = 0) -> SessionEvent:
    return on.StepTaken(step=asked, context=exchange(attempt), input_sha256=INPUTS[asked])


def session_after(last: Step | None) -> RoundSession:
    session = RoundSession(round=ROUND, phase=SessionPhase.READY)
    for asked in Step:
        if last is None:
            break
        session, _ = step(session, request(asked))
        session, _ = step(session, taken(asked))
        if asked is last:
            break
    return session


def test_round_without_incident_ends_settled_with_each_step_taken_once() -> None:
    session, commands = open_session(ROUND)
    assert commands == (do.CheckRound(),)
    session, commands = step(session, on.RoundAdmitted())
    assert commands == (do.AcceptRound(), do.StartJob())
    session, commands = step(session, on.JobSucceeded())
    assert commands == (do.ReportReady(),)
    for asked in Step:
        session, commands = step(session, request(asked))
        assert commands == (do.TakeStep(step=asked, context=exchange(), input_sha256=INPUTS[asked]),)
        session, commands = step(session, taken(asked))
        assert commands == (do.SendStep(step=asked, context=exchange()),)
        assert session.phase is PHASE_AFTER[asked]
        if asked is Step.MASK:
            session, commands = step(session, on.UploadReceipted(context=exchange()))
            assert (session.phase, commands) == (SessionPhase.UPLOADED, ())
    session, commands = step(session, on.ResultPublished(context=exchange()))
    assert commands == (do.SettleResult(context=exchange()),)
    session, commands = step(session, on.ResultSettled(context=exchange()))
    assert commands == (do.CloseExchange(context=exchange()), do.CloseRound(outcome="settled"))
    assert session.is_over


@pytest.mark.parametrize("last", list(Step))
def test_request_repeated_is_only_sent_again(last: Step) -> None:
    session = session_after(last)
    again, commands = step(session, request(last))
    assert again == session
    assert commands == (do.SendStep(step=last, context=exchange()),)


@pytest.mark.parametrize("last", [Step.SHARE, Step.MASK, Step.CONFIRM, Step.REVEAL])
def test_request_with_other_content_is_illegal(last: Step) -> None:
    with pytest.raises(IllegalTransitionError):
        step(session_after(last), request(last, content="other"))


def test_second_survivor_set_after_reveal_is_illegal() -> None:
    with pytest.raises(IllegalTransitionError):
        step(session_after(Step.REVEAL), request(Step.CONFIRM, content="other survivors"))


@pytest.mark.parametrize("last", [None, Step.ADVERTISE, Step.SHARE, Step.MASK, Step.CONFIRM])
def test_new_exchange_attempt_before_reveal_closes_the_old_one(last: Step | None) -> None:
    session, commands = step(session_after(last), request(Step.ADVERTISE, attempt=1))
    closed = () if last is None else (do.CloseExchange(context=exchange()),)
    asked = do.TakeStep(step=Step.ADVERTISE, context=exchange(1), input_sha256="")
    assert commands == (*closed, asked)
    assert session.taken == ()


def test_new_exchange_attempt_after_reveal_is_illegal() -> None:
    with pytest.raises(IllegalTransitionError):
        step(session_after(Step.REVEAL), request(Step.ADVERTISE, attempt=1))


def test_exchange_attempt_that_does_not_rise_is_illegal() -> None:
    session, _ = step(session_after(Step.SHARE), request(Step.ADVERTISE, attempt=4))
    for attempt in (0, 3, 4):
        with pytest.raises(IllegalTransitionError):
            step(session, request(Step.ADVERTISE, attempt=attempt))


def test_message_of_another_exchange_or_round_is_illegal() -> None:
    session = session_after(Step.ADVERTISE)
    with pytest.raises(IllegalTransitionError):
        step(session, request(Step.SHARE, attempt=1))
    with pytest.raises(IllegalTransitionError):
        step(session_after(None), on.ExchangeOpened(context=exchange(round_index=3)))


def test_bad_dealer_complains_and_waits_for_another_attempt() -> None:
    session, commands = step(session_after(Step.SHARE), on.DealerBlamed(context=exchange()))
    assert session.phase is SessionPhase.READY
    assert commands == (do.SendComplaint(context=exchange()), do.CloseExchange(context=exchange()))
    session, commands = step(session, request(Step.ADVERTISE, attempt=1))
    assert commands == (do.TakeStep(step=Step.ADVERTISE, context=exchange(1), input_sha256=""),)


@pytest.mark.parametrize("last", [None, Step.ADVERTISE, Step.SHARE, Step.MASK, Step.CONFIRM])
def test_refused_step_declines_the_round_and_deletes_what_it_held(last: Step | None) -> None:
    session, commands = step(session_after(last), on.StepRefused(context=exchange(), reason="cohort-too-small"))
    assert session.phase is SessionPhase.DECLINED
    closed = () if last is None else (do.CloseExchange(context=exchange()),)
    declined = do.DeclineRound(kind=DeclineKind.REFUSED, reason="cohort-too-small")
    assert commands == (*closed, declined, do.CloseRound(outcome="cohort-too-small"))


def test_failed_job_is_a_failure_not_a_refusal() -> None:
    session, commands = step(RoundSession(round=ROUND, phase=SessionPhase.TRAINING), on.JobFailed(code="job-timed-out"))
    assert session.phase is SessionPhase.FAILED
    declined = do.DeclineRound(kind=DeclineKind.FAILED, reason="job-timed-out")
    assert commands == (declined, do.CloseRound(outcome="job-timed-out"))


def test_abandoned_round_stops_the_job_and_deletes_what_it_held() -> None:
    session, commands = step(session_after(Step.MASK), on.RoundAbandoned(reason="quorum-not-reached"))
    assert session.phase is SessionPhase.ABANDONED
    closing = (do.CloseExchange(context=exchange()), do.CloseRound(outcome="quorum-not-reached"))
    assert commands == (do.StopJob(), *closing)


@pytest.mark.parametrize("last", [None, *[asked for asked in Step if asked is not Step.REVEAL]])
def test_word_taken_back_before_the_reveal_stops_the_trainer_first_and_declines(last: Step | None) -> None:
    session, commands = step(session_after(last), on.ApprovalEnded(reason="run-withdrawn"))
    closing = () if last is None else (do.CloseExchange(context=exchange()),)
    assert commands == (
        do.StopJob(),
        *closing,
        do.DeclineRound(kind=DeclineKind.REFUSED, reason="run-withdrawn"),
        do.CloseRound(outcome="run-withdrawn"),
    )
    assert (session.phase, session.context, session.taken) == (SessionPhase.DECLINED, None, ())


def test_word_taken_back_in_training_declines_and_after_the_reveal_changes_nothing() -> None:
    training, _ = step(open_session(ROUND)[0], on.RoundAdmitted())
    assert step(training, on.ApprovalEnded(reason="run-withdrawn"))[0].phase is SessionPhase.DECLINED
    with pytest.raises(IllegalTransitionError):
        step(session_after(Step.REVEAL), on.ApprovalEnded(reason="run-withdrawn"))


def test_refused_result_ends_the_round_without_a_word_to_the_coordinator() -> None:
    session, commands = step(session_after(Step.REVEAL), on.ResultRefused(context=exchange(), reason="sum-mismatch"))
    assert session.phase is SessionPhase.FAILED
    assert commands == (do.CloseExchange(context=exchange()), do.CloseRound(outcome="sum-mismatch"))


ALL_EVENTS: tuple[SessionEvent, ...] = (
    on.RoundAdmitted(),
    on.RoundRefused(reason="x"),
    on.JobSucceeded(),
    on.JobFailed(code="x"),
    *(request(asked) for asked in Step),
    *(taken(asked) for asked in Step),
    on.StepRefused(context=exchange(), reason="x"),
    on.DealerBlamed(context=exchange()),
    on.UploadReceipted(context=exchange()),
    on.ResultPublished(context=exchange()),
    on.ResultSettled(context=exchange()),
    on.ResultRefused(context=exchange(), reason="x"),
    on.RoundAbandoned(reason="x"),
    on.ApprovalEnded(reason="x"),
)


def test_pair_outside_the_table_raises() -> None:
    checked = 0
    for phase, event in itertools.product(SessionPhase, ALL_EVENTS):
        if (phase, type(event)) not in TABLE:
            checked += 1
            with pytest.raises(IllegalTransitionError):
                step(RoundSession(round=ROUND, phase=phase, context=exchange()), event)
    assert checked > 100


def test_terminal_phase_has_no_way_out() -> None:
    assert not [phase for phase, _ in TABLE if phase in TERMINAL]


def test_reveal_is_never_followed_by_another_mask() -> None:
    """Whatever comes after M9, in any order of three events, asks for no key, mask or reveal that was not taken."""
    revealed = session_after(Step.REVEAL)
    masking = {Step.ADVERTISE, Step.SHARE, Step.MASK, Step.CONFIRM}
    for events in itertools.product(ALL_EVENTS, repeat=2):
        session = revealed
        for event in (*events, request(Step.ADVERTISE, attempt=9)):
            try:
                session, commands = step(session, event)
            except IllegalTransitionError:
                continue
            assert not [c for c in commands if isinstance(c, do.TakeStep) and c.step in masking]


def test_session_keeps_its_round() -> None:
    session = session_after(Step.CONFIRM)
    assert replace(session, phase=SessionPhase.READY).round == ROUND
