"""When a round is attempted again, and when a run has failed.

An attempt that ended because sites or storage were away costs time and nothing else: the run waits, each time longer,
so that it does not spin. Only refusals that another attempt would meet again count towards the run's failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from coordinator.rounds.events import AbortReason

MAX_REFUSALS = 3
"""So many attempts at one round may end in a refusal; then the run has failed."""

FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(minutes=10)
_MAX_DOUBLINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """An attempt at a round that was ABORTED."""

    round_attempt: int
    reason: AbortReason
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NextAttempt:
    """The attempt that comes next.

    Attributes:
        round_attempt: its number, from 0.
        not_before: when it may open; None at once.
        last_reason: why the last one ended; None where there was none.
        is_given_up: whether it does not come: the run has failed.
    """

    round_attempt: int
    not_before: datetime | None
    last_reason: AbortReason | None
    is_given_up: bool


def pause_after(n_ended: int) -> timedelta:
    """How long the run waits after its ``n_ended``-th attempt at one round, from 1: doubled up to a bound."""
    doublings: int = 2 ** min(n_ended - 1, _MAX_DOUBLINGS)
    return min(FIRST_PAUSE * doublings, LONGEST_PAUSE)


def next_attempt(ended: Sequence[EndedAttempt], *, lowest: int = 0) -> NextAttempt:
    """What follows on these attempts at one round.

    Args:
        ended: the attempts that were ABORTED, in order.
        lowest: the first number that may be used; attempts below it are no longer counted.
    """
    ended = [attempt for attempt in ended if attempt.round_attempt >= lowest]
    if not ended:
        return NextAttempt(round_attempt=lowest, not_before=None, last_reason=None, is_given_up=False)
    last = ended[-1]
    n_refusals = sum(1 for attempt in ended if attempt.reason.is_refusal)
    return NextAttempt(
        round_attempt=last.round_attempt + 1,
        not_before=last.finished_at + pause_after(len(ended)),
        last_reason=last.reason,
        is_given_up=n_refusals >= MAX_REFUSALS,
    )
