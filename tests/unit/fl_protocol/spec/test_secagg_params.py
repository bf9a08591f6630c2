from __future__ import annotations

import pytest

from fl_protocol.spec.secagg_params import SecAggParams, SecAggParamsInvalidError

# From the table of thresholds in the protocol's derivation: n -> t = floor(2n/3) + 1.
TABLE = {3: 3, 4: 3, 5: 4, 7: 5, 10: 7, 20: 14, 50: 34, 100: 67, 200: 134}


@pytest.mark.parametrize(("n", "t"), TABLE.items())
def test_threshold_without_colluders_is_the_table_s(n: int, t: int) -> None:
    assert SecAggParams().threshold(n) == t


@pytest.mark.parametrize("colluders", range(6))
def test_threshold_no_two_survivor_sets_can_both_gather_it(colluders: int) -> None:
    params = SecAggParams(assumed_colluders=colluders)
    for n in range(3, 201):
        # Colluders answer twice, honest sites once: |A| + |B| <= n - c + 2c, and both would need t.
        assert 2 * params.threshold(n) > n + colluders


@pytest.mark.parametrize("colluders", range(6))
def test_max_left_over_more_than_that_leave_too_few_to_unmask(colluders: int) -> None:
    params = SecAggParams(assumed_colluders=colluders)
    for n in range(3, 201):
        returning = params.max_left_over(n) + 1
        # Of those who return, the honest never reveal in the earlier exchange; colluders reveal in any.
        assert n - (returning - colluders) < params.threshold(n)
        # A whole threshold of the same cohort always suffices, so that an exchange may be run again.
        assert params.threshold(n) >= returning


def test_min_survivors_is_the_largest_of_its_three_rules() -> None:
    assert SecAggParams().min_survivors(3) == 3
    assert SecAggParams().min_survivors(10) == 7
    assert SecAggParams(min_cohort=9).min_survivors(10) == 9
    assert SecAggParams(assumed_colluders=7).min_survivors(11) == 10
    assert SecAggParams(min_cohort=9).min_sharers(10) == 9
    assert SecAggParams().min_sharers(10) == 7


@pytest.mark.parametrize(
    "fields", [{"min_cohort": 2}, {"assumed_colluders": -1}, {"suite": "SA2"}, {"chunk_bytes": 0}, {"chunk_bytes": 100}]
)
def test_params_that_protect_nobody_are_refused(fields: dict) -> None:
    with pytest.raises(SecAggParamsInvalidError):
        SecAggParams(**fields)
