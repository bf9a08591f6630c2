"""What a site should do now, derived from what the coordinator knows; there is no queue, so nothing can be lost in one.

The same answer is given until the site has acted on it. Of everything that applies, the first in this order: abandon a
round, take the published result of one that it holds, the step of an exchange, train, take any other result. A result
that a site refuses, for ever perhaps, then keeps no other round waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from coordinator.rounds.events import MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import DropReason, ParticipationState
from coordinator.rounds.round_machine import RoundState
from fl_protocol.ids import RunId


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RoundRef:
    """Names one attempt at a round."""

    run_id: RunId
    round_index: int
    round_attempt: int


class ExchangeTask(StrEnum):
    """The step of an exchange that a site is asked for."""

    ADVERTISE = "advertise"
    SHARE = "share"
    UPLOAD = "upload"
    CONFIRM = "confirm"
    REVEAL = "reveal"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeView:
    """The latest exchange of a round, as far as it concerns one site."""

    exchange_index: int
    exchange_attempt: int
    state: ExchangeState
    is_asked: bool
    """Whether the site belongs to those asked for a message in this phase, and the phase takes messages."""
    is_survivor: bool
    sent: frozenset[MessageKind]
    is_result_scrubbed: bool = False
    """Whether the sum was published and can be given to nobody any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """A round as far as it concerns one site."""

    ref: RoundRef
    state: RoundState
    reason: str | None
    participation: ParticipationState
    participation_reason: str | None
    is_acknowledged: bool
    exchange: ExchangeView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueAbandon:
    """Forget the round."""

    ref: RoundRef
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DueResult:
    """Take the published result of the round's exchange."""

    ref: RoundRef
    exchange_index: int
    exchange_attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueExchange:
    """Do the next step of an exchange."""

    ref: RoundRef
    exchange_index: int
    exchange_attempt: int
    task: ExchangeTask


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTraining:
    """Train."""

    ref: RoundRef


Due = DueAbandon | DueResult | DueExchange | DueTraining

_SILENCES = frozenset(reason.value for reason in DropReason if reason.may_return)
_TASKS = {
    ExchangeState.ADVERTISING: (ExchangeTask.ADVERTISE, MessageKind.M1),
    ExchangeState.SHARING: (ExchangeTask.SHARE, MessageKind.M3),
    ExchangeState.COLLECTING: (ExchangeTask.UPLOAD, MessageKind.M5),
    ExchangeState.CONFIRMING: (ExchangeTask.CONFIRM, MessageKind.M7),
    ExchangeState.REVEALING: (ExchangeTask.REVEAL, MessageKind.M9),
}


def derive_due(
    views: Sequence[RoundView], *, holding: Collection[RoundRef], unknown: Collection[RoundRef] = ()
) -> Due | None:
    """What the site should do now, or None.

    Args:
        views: the rounds that may concern the site, in any order; those it holds among them.
        holding: the rounds it says it is at work on.
        unknown: rounds it holds and that do not exist, or not for it.
    """
    if unknown:
        return DueAbandon(ref=min(unknown), reason="round-unknown")
    ordered = sorted(views, key=lambda view: view.ref)
    for find in (_abandon, _held_result, _exchange, _training, _result):
        for view in ordered:
            due = find(view, view.ref in holding)
            if due is not None:
                return due
    return None


def _abandon(view: RoundView, is_held: bool) -> Due | None:  # noqa: FBT001 # called by position in one loop only
    if not is_held:
        return None
    if view.state is RoundState.ABORTED:
        return DueAbandon(ref=view.ref, reason=view.reason or "aborted")
    is_survivor = view.exchange is not None and view.exchange.is_survivor
    is_scrubbed = view.exchange is not None and view.exchange.is_result_scrubbed
    if (is_survivor and not is_scrubbed) or _may_return(view):
        return None
    if view.participation.is_gone:
        return DueAbandon(ref=view.ref, reason=view.participation_reason or view.participation.value.lower())
    if view.state is RoundState.COMMITTED:
        return DueAbandon(ref=view.ref, reason="result-scrubbed" if is_survivor else "not-counted")
    return None


def _may_return(view: RoundView) -> bool:
    """Whether the site's payload may be asked for again: it was silent in an exchange, which may yet fail."""
    is_silent = view.participation is ParticipationState.DROPPED and view.participation_reason in _SILENCES
    return is_silent and view.state is RoundState.EXCHANGING


def _held_result(view: RoundView, is_held: bool) -> Due | None:  # noqa: FBT001 # as above
    return _result(view, is_held) if is_held else None


def _result(view: RoundView, is_held: bool) -> Due | None:  # noqa: FBT001 # as above
    del is_held
    exchange = view.exchange
    if view.state is not RoundState.COMMITTED or view.is_acknowledged:
        return None
    if exchange is None or not exchange.is_survivor or exchange.is_result_scrubbed:
        return None
    return DueResult(ref=view.ref, exchange_index=exchange.exchange_index, exchange_attempt=exchange.exchange_attempt)


def _exchange(view: RoundView, is_held: bool) -> Due | None:  # noqa: FBT001 # as above
    del is_held
    exchange = view.exchange
    if view.state is not RoundState.EXCHANGING or exchange is None or not exchange.is_asked:
        return None
    if view.participation.is_gone or exchange.state not in _TASKS or MessageKind.COMPLAINT in exchange.sent:
        return None
    task, answer = _TASKS[exchange.state]
    if answer in exchange.sent:
        return None
    return DueExchange(
        ref=view.ref,
        exchange_index=exchange.exchange_index,
        exchange_attempt=exchange.exchange_attempt,
        task=task,
    )


def _training(view: RoundView, is_held: bool) -> Due | None:  # noqa: FBT001 # as above
    if view.state is not RoundState.TRAINING:
        return None
    is_new = view.participation is ParticipationState.INVITED
    is_forgotten = view.participation is ParticipationState.TRAINING and not is_held
    return DueTraining(ref=view.ref) if is_new or is_forgotten else None
