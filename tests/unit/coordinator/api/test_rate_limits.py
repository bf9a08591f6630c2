from __future__ import annotations

import json

import pytest

from coordinator.api.problems import problem_from_error
from coordinator.api.rate_limits import RateLimits, RateRule, RateRules, TokenBuckets
from coordinator.services.refusals import RateLimitedError

GOOD, OTHER = b"g" * 32, b"o" * 32


class Time:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def limits(time: Time) -> RateLimits:
    rules = RateRules(
        requests=RateRule(per_minute=60.0, burst=3), failures=RateRule(per_minute=6.0, burst=2), max_tracked=4
    )
    return RateLimits(rules, monotonic=time)


def test_bucket_gives_its_burst_and_then_one_in_each_interval() -> None:
    """Two a second: after five at once there are 2 * t of them in t seconds."""
    buckets = TokenBuckets(RateRule(per_minute=120.0, burst=5), max_tracked=10)
    assert [buckets.take("a", now=0.0) for _ in range(5)] == [0.0] * 5
    assert buckets.take("a", now=0.0) == pytest.approx(0.5)
    assert buckets.take("a", now=0.25) == pytest.approx(0.25)
    assert buckets.take("a", now=0.5) == 0.0
    taken = sum(buckets.take("a", now=0.5 + step / 100) == 0.0 for step in range(1, 1001))
    assert taken == 20


def test_bucket_never_holds_more_than_its_burst_and_refusals_cost_nothing() -> None:
    buckets = TokenBuckets(RateRule(per_minute=60.0, burst=2), max_tracked=10)
    assert [buckets.take("a", now=0.0) for _ in range(2)] == [0.0, 0.0]
    for _ in range(100):
        assert buckets.take("a", now=0.5) > 0.0
    assert buckets.take("a", now=1.0) == 0.0
    assert [buckets.take("a", now=1e6) == 0.0 for _ in range(3)] == [True, True, False]


def test_memory_is_bounded_and_who_asked_longest_ago_is_forgotten_first() -> None:
    buckets = TokenBuckets(RateRule(per_minute=0.001, burst=1), max_tracked=3)
    for key in "abc":
        buckets.take(key, now=0.0)
    buckets.take("a", now=0.0)
    buckets.take("d", now=0.0)
    assert len(buckets) == 3
    assert buckets.wait_s("a", now=0.0) > 0.0
    assert buckets.wait_s("b", now=0.0) == 0.0
    for number in range(1000):
        buckets.take(f"flood {number}", now=0.0)
    assert len(buckets) == 3


@pytest.mark.parametrize("rule", [(0.0, 1), (-1.0, 1), (float("inf"), 1), (float("nan"), 1), (1.0, 0)])
def test_rule_that_lets_nobody_in_is_refused(rule: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="rule"):
        RateRule(per_minute=rule[0], burst=rule[1])


def test_person_who_asks_too_often_waits_and_another_does_not(limits: RateLimits, time: Time) -> None:
    for _ in range(3):
        limits.after_identification("token-1", credential=GOOD)
    with pytest.raises(RateLimitedError):
        limits.before_identification("10.0.0.1", credential=GOOD)
    with pytest.raises(RateLimitedError) as caught:
        limits.after_identification("token-1", credential=GOOD)
    assert caught.value.facts["retry_after_s"] == 1
    limits.after_identification("token-2", credential=OTHER)
    time.now += 1.0
    limits.before_identification("10.0.0.1", credential=GOOD)
    limits.after_identification("token-1", credential=GOOD)


def test_address_that_failed_too_often_waits_but_a_token_that_was_good_there_does_not(
    limits: RateLimits, time: Time
) -> None:
    limits.after_identification("token-1", credential=GOOD)
    for _ in range(2):
        limits.before_identification("10.0.0.1", credential=OTHER)
        limits.note_failure("10.0.0.1", credential=OTHER)
    with pytest.raises(RateLimitedError) as caught:
        limits.before_identification("10.0.0.1", credential=OTHER)
    assert caught.value.facts["retry_after_s"] == 10
    limits.before_identification("10.0.0.1", credential=GOOD)
    limits.before_identification("10.0.0.2", credential=OTHER)
    time.now += 10.0
    limits.before_identification("10.0.0.1", credential=OTHER)


def test_token_that_stopped_being_good_is_not_let_past_the_address_again(limits: RateLimits) -> None:
    limits.after_identification("token-1", credential=GOOD)
    for _ in range(2):
        limits.note_failure("10.0.0.1", credential=GOOD)
    with pytest.raises(RateLimitedError):
        limits.before_identification("10.0.0.1", credential=GOOD)


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_who_holds_sixty_four_bits_of_ipv6_is_one_address(
    limits: RateLimits, first: str, second: str, *, is_one: bool
) -> None:
    for _ in range(2):
        limits.note_failure(first, credential=OTHER)
    if is_one:
        with pytest.raises(RateLimitedError):
            limits.before_identification(second, credential=OTHER)
    else:
        limits.before_identification(second, credential=OTHER)


def test_refusal_says_when_to_come_again() -> None:
    answer = problem_from_error(RateLimitedError("too many", retry_after_s=7))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert json.loads(bytes(answer.body))["code"] == "rate-limited"
