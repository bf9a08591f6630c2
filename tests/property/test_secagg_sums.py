"""Whatever the cohort, the payloads and the drop-outs: exactly the survivors' integer sum, or a typed refusal."""

from __future__ import annotations

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import Federation, LastSent
from fl_protocol.testing.strategies import Losses, Scenario, scenarios


def expected_outcome(scenario: Scenario) -> tuple[str, ...] | RefusalReason:
    """Who survives, or why the exchange fails, from the thresholds alone."""
    last = scenario.last_sent
    reached = {step: sorted(site for site in last if last[site] >= step) for step in LastSent}
    params = SecAggParams()
    n = len(reached[LastSent.M1])
    t = 2 * n // 3 + 1
    for step in (LastSent.M1, LastSent.M3, LastSent.M5):
        if len(reached[step]) < max(t, params.min_cohort):
            return RefusalReason.COHORT_TOO_SMALL
    for step in (LastSent.M7, LastSent.M9):
        if len(reached[step]) < t:
            return RefusalReason.QUORUM_MISSING
    return tuple(reached[LastSent.M5])


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def assert_outcome_is_as_expected(scenario: Scenario, *, is_restarting: bool) -> None:
    """The whole exchange, with each party made again from its state before each step if ``is_restarting``."""
    federation = Federation(tuple(sorted(scenario.update)), scenario.layout)
    expected = expected_outcome(scenario)
    run = functools.partial(
        federation.exchange,
        scenario.vectors(),
        last_sent=scenario.last_sent,
        is_restarting=is_restarting and len(scenario.update) < 8,
    )
    if isinstance(expected, RefusalReason):
        with pytest.raises(SecAggRefusedError) as refused:
            run()
        assert (refused.value.reason, refused.value.blamed) == (expected, None)
        return
    outcome = run()
    assert outcome.survivors == expected
    assert [signed(int(word), 32) for word in outcome.total.ring32] == [
        sum(scenario.update[site][i] for site in expected) for i in range(scenario.layout.n_ring32)
    ]
    assert [signed(int(word), 64) for word in outcome.total.ring64] == [
        sum(scenario.count[site][i] for site in expected) for i in range(scenario.layout.n_ring64)
    ]
    assert outcome.result.result_sha256 == outcome.total.sha256()


examples = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(examples, max_examples=20)
@given(scenario=scenarios(), is_restarting=st.booleans())
def test_exchange_any_cohort_and_drop_outs_gives_the_exact_sum_or_a_typed_refusal(
    scenario: Scenario, *, is_restarting: bool
) -> None:
    assert_outcome_is_as_expected(scenario, is_restarting=is_restarting)


# Each outcome by itself: what Hypothesis draws above changes with the constants that it finds in the code.


@settings(examples, max_examples=10)
@given(scenario=scenarios(losses=Losses.NONE), is_restarting=st.booleans())
def test_exchange_nobody_leaves_gives_the_exact_sum_of_all(scenario: Scenario, *, is_restarting: bool) -> None:
    assert expected_outcome(scenario) == tuple(sorted(scenario.update))
    assert_outcome_is_as_expected(scenario, is_restarting=is_restarting)


@settings(examples, max_examples=15)
@given(scenario=scenarios(losses=Losses.SURVIVED), is_restarting=st.booleans())
def test_exchange_few_leave_gives_the_exact_sum_of_the_others(scenario: Scenario, *, is_restarting: bool) -> None:
    assert 0 < len(expected_outcome(scenario)) < len(scenario.update)
    assert_outcome_is_as_expected(scenario, is_restarting=is_restarting)


@settings(examples, max_examples=10)
@given(scenario=scenarios(losses=Losses.FATAL), is_restarting=st.booleans())
def test_exchange_too_many_leave_is_refused(scenario: Scenario, *, is_restarting: bool) -> None:
    assert isinstance(expected_outcome(scenario), RefusalReason)
    assert_outcome_is_as_expected(scenario, is_restarting=is_restarting)
