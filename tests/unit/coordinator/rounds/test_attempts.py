"""When a round is attempted again, and when the run has failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from coordinator.rounds.attempts import EndedAttempt, next_attempt, pause_after
from coordinator.rounds.events import AbortReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST, REFUSED = AbortReason.QUORUM_NOT_REACHED, AbortReason.IMPLAUSIBLE_SUM


def ended(*reasons: AbortReason, first: int = 0) -> list[EndedAttempt]:
    return [
        EndedAttempt(round_attempt=first + i, reason=reason, finished_at=NOW + timedelta(hours=i))
        for i, reason in enumerate(reasons)
    ]


def test_first_attempt_comes_at_once() -> None:
    following = next_attempt([])
    assert (following.round_attempt, following.not_before, following.is_given_up) == (0, None, False)


def test_pauses_double_from_ten_seconds_to_ten_minutes() -> None:
    seconds = [pause_after(n).total_seconds() for n in range(1, 10)]
    assert seconds == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert pause_after(10**9) == timedelta(minutes=10)


def test_attempts_that_absence_cost_never_fail_the_run() -> None:
    following = next_attempt(ended(*[LOST] * 500))
    assert not following.is_given_up
    assert following.round_attempt == 500
    assert following.not_before == NOW + timedelta(hours=499, minutes=10)


@pytest.mark.parametrize(
    ("reasons", "is_given_up"),
    [
        ((REFUSED, REFUSED), False),
        ((REFUSED, LOST, REFUSED, LOST), False),
        ((REFUSED, LOST, REFUSED, LOST, REFUSED), True),
        ((AbortReason.DEALER_BLAMED, AbortReason.FOLD_REFUSED, AbortReason.EFFECT_FAILED), True),
    ],
)
def test_three_refusals_at_one_round_fail_the_run(reasons: tuple[AbortReason, ...], is_given_up: bool) -> None:
    assert next_attempt(ended(*reasons)).is_given_up is is_given_up


def test_attempts_below_the_lowest_number_are_not_counted() -> None:
    before = ended(REFUSED, REFUSED)
    following = next_attempt(before, lowest=1000)
    assert (following.round_attempt, following.not_before) == (1000, None)
    following = next_attempt([*before, *ended(REFUSED, first=1000)], lowest=1000)
    assert (following.round_attempt, following.is_given_up) == (1001, False)


def test_reasons_that_are_nobodys_refusal() -> None:
    assert {reason for reason in AbortReason if not reason.is_refusal} >= {
        AbortReason.QUORUM_NOT_REACHED,
        AbortReason.EXCHANGE_ATTEMPTS_EXHAUSTED,
        AbortReason.TOO_FEW_CONFIRMED,
        AbortReason.RUN_CANCELLED,
    }
