"""Waits that grow, stay in bounds and start again."""

from __future__ import annotations

from site_agent.link.backoff import Backoff, BackoffPlan

PLAN = BackoffPlan(first_s=1.0, factor=2.0, longest_s=10.0)


def test_wait_doubles_up_to_the_longest() -> None:
    backoff = Backoff(lambda: 1.0, PLAN)
    assert [backoff.next_wait_s() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_wait_is_drawn_from_the_upper_half() -> None:
    backoff = Backoff(lambda: 0.0, PLAN)
    assert [backoff.next_wait_s() for _ in range(3)] == [0.5, 1.0, 2.0]


def test_success_starts_again_from_the_first_wait() -> None:
    backoff = Backoff(lambda: 1.0, PLAN)
    backoff.next_wait_s()
    backoff.next_wait_s()
    backoff.reset()
    assert backoff.next_wait_s() == 1.0


def test_thousand_failures_stay_at_the_longest() -> None:
    backoff = Backoff(lambda: 1.0, PLAN)
    assert [backoff.next_wait_s() for _ in range(1000)][-1] == 10.0
