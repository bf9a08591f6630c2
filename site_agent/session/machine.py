"""The machine of one round at this site: ``step(session, event)`` gives the next session and the commands.

    ASSIGNED -> TRAINING -> READY -> ADVERTISED -> SHARED -> MASKED -> UPLOADED -> CONFIRMED -> REVEALED -> SETTLED
    any of them but the last -> DECLINED | FAILED | ABANDONED

One table says all that may happen; any other pair raises IllegalTransitionError, and the shell tells a coordinator
that provoked it nothing but its code. Rules that the table carries:

- a statement is made once an exchange. The same request again gets the same bytes again; a request with other content
  is illegal (a second list of keys, a second set of survivors);
- attempts of an exchange only rise, and none opens once M9 was made: after that the payload is never masked again;
- a round ends once;
- a word that is taken back ends the round at once, until shares were revealed: after that its result is settled.

Knows no bytes of any message, only that they are the same or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from fl_protocol.spec.context import ExchangeContext, RoundContext
from site_agent.errors import IllegalTransitionError
from site_agent.session import commands as do
from site_agent.session import events as on
from site_agent.session.commands import SessionCommand
from site_agent.session.events import DeclineKind, RelayedInput, SessionEvent, Step, round_of


class SessionPhase(StrEnum):
    """How far this site is in the round."""

    ASSIGNED = "assigned"
    TRAINING = "training"
    READY = "ready"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    UPLOADED = "uploaded"
    CONFIRMED = "confirmed"
    REVEALED = "revealed"
    SETTLED = "settled"
    DECLINED = "declined"
    FAILED = "failed"
    ABANDONED = "abandoned"


RECORDED = frozenset({SessionPhase.TRAINING, SessionPhase.READY})
"""Phases before the end that the round book holds. Those inside an exchange are the journal's, and nowhere twice."""

TERMINAL = frozenset({SessionPhase.SETTLED, SessionPhase.DECLINED, SessionPhase.FAILED, SessionPhase.ABANDONED})

PHASE_AFTER: Mapping[Step, SessionPhase] = {
    Step.ADVERTISE: SessionPhase.ADVERTISED,
    Step.SHARE: SessionPhase.SHARED,
    Step.MASK: SessionPhase.MASKED,
    Step.CONFIRM: SessionPhase.CONFIRMED,
    Step.REVEAL: SessionPhase.REVEALED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSession:
    """One round at this site.

    Attributes:
        round: which attempt at which round.
        phase: how far it is.
        context: the exchange at work, from M1 on.
        taken: step and digest of the input that it answered, of the exchange at work.
        last_exchange_attempt: the highest attempt that was opened; -1 before the first.
        outcome: why the round ended; a closed code.
    """

    round: RoundContext
    phase: SessionPhase = SessionPhase.ASSIGNED
    context: ExchangeContext | None = None
    taken: tuple[tuple[Step, str], ...] = ()
    last_exchange_attempt: int = -1
    outcome: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more can happen."""
        return self.phase in TERMINAL

    def input_of(self, step: Step) -> str | None:
        """The digest of what that step answered; None when it was not taken."""
        return dict(self.taken).get(step)


Outcome = tuple[RoundSession, tuple[SessionCommand, ...]]
Transition = Callable[[RoundSession, SessionEvent], Outcome]


def open_session(round_context: RoundContext) -> Outcome:
    """A round was assigned: check it."""
    return RoundSession(round=round_context), (do.CheckRound(),)


def step(session: RoundSession, event: SessionEvent) -> Outcome:
    """What follows from an event.

    Raises:
        IllegalTransitionError: nothing does: the table has no such pair, or the event is of another exchange.
    """
    transition = TABLE.get((session.phase, type(event)))
    if transition is None:
        raise _illegal(session, event)
    return transition(session, event)


def _illegal(
    session: RoundSession, event: SessionEvent, why: str = "nothing follows from this here"
) -> IllegalTransitionError:
    return IllegalTransitionError(
        why,
        phase=session.phase.value,
        event=type(event).__name__,
        run_id=session.round.run_id,
        round_index=session.round.round_index,
        round_attempt=session.round.round_attempt,
    )


def _admitted(session: RoundSession, _: SessionEvent) -> Outcome:
    return replace(session, phase=SessionPhase.TRAINING), (do.AcceptRound(), do.StartJob())


def _refused(session: RoundSession, event: SessionEvent) -> Outcome:
    reason = cast("on.RoundRefused", event).reason
    return _declined(session, kind=DeclineKind.REFUSED, reason=reason)


def _declined(session: RoundSession, *, kind: DeclineKind, reason: str) -> Outcome:
    phase = SessionPhase.DECLINED if kind is DeclineKind.REFUSED else SessionPhase.FAILED
    ended = replace(session, phase=phase, context=None, taken=(), outcome=reason)
    return ended, (*_closed_exchange(session), do.DeclineRound(kind=kind, reason=reason), do.CloseRound(outcome=reason))


def _closed_exchange(session: RoundSession) -> tuple[SessionCommand, ...]:
    return () if session.context is None else (do.CloseExchange(context=session.context),)


def _job_succeeded(session: RoundSession, _: SessionEvent) -> Outcome:
    return replace(session, phase=SessionPhase.READY), (do.ReportReady(),)


def _job_failed(session: RoundSession, event: SessionEvent) -> Outcome:
    return _declined(session, kind=DeclineKind.FAILED, reason=cast("on.JobFailed", event).code)


def _exchange_opened(session: RoundSession, event: SessionEvent) -> Outcome:
    context = cast("on.ExchangeOpened", event).context
    if round_of(context) != session.round:
        raise _illegal(session, event, "the exchange is of another round")
    if session.context == context:
        if session.phase is SessionPhase.ADVERTISED:
            return session, (do.SendStep(step=Step.ADVERTISE, context=context),)
        raise _illegal(session, event, "this exchange is past its keys")
    if context.exchange_attempt <= session.last_exchange_attempt:
        raise _illegal(session, event, "attempts of an exchange only rise")
    opened = replace(
        session,
        phase=SessionPhase.READY,
        context=None,
        taken=(),
        last_exchange_attempt=context.exchange_attempt,
    )
    asked = do.TakeStep(step=Step.ADVERTISE, context=context, input_sha256="")
    return opened, (*_closed_exchange(session), asked)


def _relayed(step_asked: Step) -> Transition:
    """The transition of an input that asks for ``step_asked``: taken once, and then only sent again."""

    def transition(session: RoundSession, event: SessionEvent) -> Outcome:
        relayed = cast("RelayedInput", event)
        if relayed.context != session.context:
            raise _illegal(session, event, "the message is of another exchange")
        answered = session.input_of(step_asked)
        if answered is None:
            asked = do.TakeStep(step=step_asked, context=relayed.context, input_sha256=relayed.input_sha256)
            return session, (asked,)
        if answered != relayed.input_sha256:
            raise _illegal(session, event, "this step was taken for another message")
        return session, (do.SendStep(step=step_asked, context=relayed.context),)

    return transition


def _taken(session: RoundSession, event: SessionEvent) -> Outcome:
    taken = cast("on.StepTaken", event)
    expected = taken.context if taken.step is Step.ADVERTISE else session.context
    if taken.context != expected or session.input_of(taken.step) is not None:
        raise _illegal(session, event, "the step is of another exchange, or was taken before")
    if session.phase not in PHASES_BEFORE[taken.step]:
        raise _illegal(session, event, "the step does not follow on this phase")
    after = replace(
        session,
        phase=PHASE_AFTER[taken.step],
        context=taken.context,
        taken=(*session.taken, (taken.step, taken.input_sha256)),
    )
    return after, (do.SendStep(step=taken.step, context=taken.context),)


def _step_refused(session: RoundSession, event: SessionEvent) -> Outcome:
    return _declined(session, kind=DeclineKind.REFUSED, reason=cast("on.StepRefused", event).reason)


def _dealer_blamed(session: RoundSession, event: SessionEvent) -> Outcome:
    context = cast("on.DealerBlamed", event).context
    if context != session.context:
        raise _illegal(session, event, "the message is of another exchange")
    ready = replace(session, phase=SessionPhase.READY, context=None, taken=())
    return ready, (do.SendComplaint(context=context), do.CloseExchange(context=context))


def _receipted(session: RoundSession, event: SessionEvent) -> Outcome:
    if cast("on.UploadReceipted", event).context != session.context:
        raise _illegal(session, event, "the receipt is of another exchange")
    return replace(session, phase=SessionPhase.UPLOADED), ()


def _published(session: RoundSession, event: SessionEvent) -> Outcome:
    context = cast("on.ResultPublished", event).context
    if context != session.context:
        raise _illegal(session, event, "the result is of another exchange")
    return session, (do.SettleResult(context=context),)


def _settled(session: RoundSession, event: SessionEvent) -> Outcome:
    if cast("on.ResultSettled", event).context != session.context:
        raise _illegal(session, event, "the result is of another exchange")
    ended = replace(session, phase=SessionPhase.SETTLED, context=None, taken=(), outcome="settled")
    return ended, (*_closed_exchange(session), do.CloseRound(outcome="settled"))


def _result_refused(session: RoundSession, event: SessionEvent) -> Outcome:
    refused = cast("on.ResultRefused", event)
    if refused.context != session.context:
        raise _illegal(session, event, "the result is of another exchange")
    # The coordinator has left the round behind: there is nobody to decline it to. What was revealed stays unresolved.
    ended = replace(session, phase=SessionPhase.FAILED, context=None, taken=(), outcome=refused.reason)
    return ended, (*_closed_exchange(session), do.CloseRound(outcome=refused.reason))


def _abandoned(session: RoundSession, event: SessionEvent) -> Outcome:
    reason = cast("on.RoundAbandoned", event).reason
    ended = replace(session, phase=SessionPhase.ABANDONED, context=None, taken=(), outcome=reason)
    return ended, (do.StopJob(), *_closed_exchange(session), do.CloseRound(outcome=reason))


def _approval_ended(session: RoundSession, event: SessionEvent) -> Outcome:
    # The trainer first: nothing of the run is computed while the word travels.
    ended, commands = _declined(session, kind=DeclineKind.REFUSED, reason=cast("on.ApprovalEnded", event).reason)
    return ended, (do.StopJob(), *commands)


_BEFORE_REVEAL = (
    SessionPhase.READY,
    SessionPhase.ADVERTISED,
    SessionPhase.SHARED,
    SessionPhase.MASKED,
    SessionPhase.UPLOADED,
    SessionPhase.CONFIRMED,
)
PHASES_BEFORE: Mapping[Step, frozenset[SessionPhase]] = {
    Step.ADVERTISE: frozenset({SessionPhase.READY}),
    Step.SHARE: frozenset({SessionPhase.ADVERTISED}),
    Step.MASK: frozenset({SessionPhase.SHARED}),
    # The receipt may be lost on the way; that M6 shows this site's own header proves the upload as well.
    Step.CONFIRM: frozenset({SessionPhase.MASKED, SessionPhase.UPLOADED}),
    Step.REVEAL: frozenset({SessionPhase.CONFIRMED}),
}
_ASKS: Mapping[type[SessionEvent], Step] = {
    on.KeysRelayed: Step.SHARE,
    on.SharesRelayed: Step.MASK,
    on.SurvivorsRelayed: Step.CONFIRM,
    on.ConfirmationsRelayed: Step.REVEAL,
}


def _table() -> dict[tuple[SessionPhase, type[SessionEvent]], Transition]:
    phase = SessionPhase
    table: dict[tuple[SessionPhase, type[SessionEvent]], Transition] = {
        (phase.ASSIGNED, on.RoundAdmitted): _admitted,
        (phase.ASSIGNED, on.RoundRefused): _refused,
        (phase.TRAINING, on.JobSucceeded): _job_succeeded,
        (phase.TRAINING, on.JobFailed): _job_failed,
        (phase.MASKED, on.UploadReceipted): _receipted,
        (phase.SHARED, on.DealerBlamed): _dealer_blamed,
    }
    for early in _BEFORE_REVEAL:
        table[early, on.ExchangeOpened] = _exchange_opened
        table[early, on.StepRefused] = _step_refused
        # A payload that is lost or damaged after READY is a failure, whichever step finds it.
        table[early, on.JobFailed] = _job_failed
    for unrevealed in (phase.TRAINING, *_BEFORE_REVEAL):
        # Masked, uploaded or confirmed, nothing is unmasked without this site's shares or a threshold of the others'.
        # After M9 there is nothing left to hold back: the round is settled, so that what became of it is known.
        table[unrevealed, on.ApprovalEnded] = _approval_ended
    for asking, asked in _ASKS.items():
        for before in PHASES_BEFORE[asked] | {PHASE_AFTER[asked]}:
            table[before, asking] = _relayed(asked)
    # M4 again after the receipt: the coordinator has not seen its own receipt leave.
    table[phase.UPLOADED, on.SharesRelayed] = _relayed(Step.MASK)
    for before in {before for phases in PHASES_BEFORE.values() for before in phases}:
        table[before, on.StepTaken] = _taken
    table[phase.UPLOADED, on.UploadReceipted] = _receipted
    for holding in (phase.MASKED, phase.UPLOADED, phase.CONFIRMED, phase.REVEALED):
        table[holding, on.ResultPublished] = _published
        table[holding, on.ResultSettled] = _settled
        table[holding, on.ResultRefused] = _result_refused
    for open_phase in set(SessionPhase) - TERMINAL:
        table[open_phase, on.RoundAbandoned] = _abandoned
    return table


TABLE: Mapping[tuple[SessionPhase, type[SessionEvent]], Transition] = _table()
"""All that may happen."""
