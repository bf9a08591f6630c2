from __future__ import annotations

import itertools
import math

import pytest

from fl_protocol.spec.learning_rate import (
    learning_rate_at,
    smallest_sum_of_learning_rates,
    sum_of_learning_rates,
)
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from tests.support.training_jobs import spec_document


def spec_of(**local: object) -> RunSpec:
    document = spec_document("ab" * 32, local={"steps": 10, "learning_rate": 0.5, **local})
    return parse_run_spec({**document, "rounds": 4})


def test_cosine_goes_across_rounds_from_the_peak_by_the_half_to_nearly_nothing() -> None:
    spec = spec_of(schedule="cosine")
    assert learning_rate_at(spec, round_index=0, step=0) == 0.5
    assert learning_rate_at(spec, round_index=2, step=0) == pytest.approx(0.25)
    assert learning_rate_at(spec, round_index=3, step=9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 39 / 40)) / 2)


def test_cosine_does_not_jump_where_a_round_begins() -> None:
    spec = spec_of(schedule="cosine")
    rates = [learning_rate_at(spec, round_index=r, step=s) for r in range(4) for s in range(10)]
    assert rates == sorted(rates, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(rates)) < 0.5 * math.pi / 2 / 40 * 1.01


def test_linear_falls_by_the_same_each_step() -> None:
    spec = spec_of(schedule="linear")
    assert learning_rate_at(spec, round_index=1, step=0) == pytest.approx(0.375)
    assert learning_rate_at(spec, round_index=3, step=9) == pytest.approx(0.0125)


def test_constant_stays() -> None:
    spec = spec_of(schedule="constant")
    assert {learning_rate_at(spec, round_index=r, step=s) for r in range(4) for s in range(10)} == {0.5}


def test_warm_up_rises_over_rounds_and_the_rest_takes_the_remaining_steps() -> None:
    spec = spec_of(schedule="cosine", warmup_steps=12)
    assert learning_rate_at(spec, round_index=0, step=0) == pytest.approx(0.5 / 12)
    assert learning_rate_at(spec, round_index=1, step=1) == pytest.approx(0.5)
    assert learning_rate_at(spec, round_index=1, step=2) == pytest.approx(0.5)
    assert learning_rate_at(spec, round_index=2, step=6) == pytest.approx(0.25)


def test_warm_up_over_the_whole_run_divides_by_nothing() -> None:
    spec = spec_of(schedule="linear", warmup_steps=40)
    assert learning_rate_at(spec, round_index=3, step=9) == pytest.approx(0.5)


def test_cosine_by_round_has_openfedllms_rates_at_rounds_0_half_and_last() -> None:
    # Its SFT script: 5e-5 to 1e-6 over 200 rounds of 10 steps. By hand: at T/2 the cosine is 0, so (5e-5 + 1e-6) / 2;
    # at T - 1 it is cos(pi - pi/200) = -0.99987663...
    document = spec_document("ab" * 32, local={"steps": 10, "learning_rate": 5e-5, "schedule": "cosine-by-round"})
    spec = parse_run_spec({**document, "rounds": 200})
    assert spec.local.min_learning_rate == 1e-6
    assert learning_rate_at(spec, round_index=0, step=0) == 5e-5
    assert learning_rate_at(spec, round_index=100, step=3) == pytest.approx(2.55e-5, rel=1e-12)
    assert learning_rate_at(spec, round_index=199, step=9) == pytest.approx(1.0030225e-06, rel=1e-7)
    for round_index in (0, 57, 100, 199):
        assert len({learning_rate_at(spec, round_index=round_index, step=step) for step in range(10)}) == 1


def test_sum_of_a_round_is_that_of_its_steps() -> None:
    spec = spec_of(schedule="linear")
    # Steps 10 .. 19 of 40: 0.5 (1 - t / 40), summed: 0.5 (10 - 145 / 40).
    assert sum_of_learning_rates(spec, round_index=1) == pytest.approx(0.5 * (10 - 145 / 40), rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 3, 12, 25, 40])
def test_smallest_sum_is_the_smallest_over_all_rounds(schedule: str, warmup_steps: int) -> None:
    spec = spec_of(schedule=schedule, warmup_steps=warmup_steps)
    assert smallest_sum_of_learning_rates(spec) == min(sum_of_learning_rates(spec, round_index=r) for r in range(4))
