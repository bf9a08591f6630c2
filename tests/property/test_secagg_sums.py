"""Whatever the cohort, the payloads and the drop-outs: exactly the survivors' integer sum, or a typed refusal."""

from __future__ import annotations

import collections
import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import Federation, LastSent
from fl_protocol.testing.strategies import Scenario, scenarios

OUTCOMES: collections.Counter[str] = collections.Counter()


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


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=scenarios(), is_restarting=st.booleans())
def run_scenarios(scenario: Scenario, *, is_restarting: bool) -> None:
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
        OUTCOMES["refused"] += 1
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
    OUTCOMES["summed with losses" if len(expected) < len(scenario.update) else "summed"] += 1


def test_exchange_any_cohort_and_drop_outs_gives_the_exact_sum_or_a_typed_refusal() -> None:
    OUTCOMES.clear()
    run_scenarios()
    # Not vacuous: each outcome was met, more than once.
    assert all(OUTCOMES[kind] >= 5 for kind in ("refused", "summed", "summed with losses")), OUTCOMES
