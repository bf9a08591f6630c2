from __future__ import annotations

import itertools
import math

import pytest

from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from site_agent.training.local.schedule import learning_rate_at
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
