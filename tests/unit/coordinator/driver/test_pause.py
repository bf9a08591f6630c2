from __future__ import annotations

import pytest

from coordinator.driver.round_driver import pause_s


@pytest.mark.parametrize(
    ("sweep_s", "expected"),
    [(0.0, 0.5), (0.01, 0.5), (0.1, 2.0), (0.2, 4.0), (3.0, 5.0)],
    ids=["nothing", "few sites", "a hundred", "more", "never longer than five seconds"],
)
def test_driver_that_nobody_wakes_looks_the_less_often_the_more_a_look_costs(sweep_s: float, expected: float) -> None:
    assert pause_s(0.5, sweep_s=sweep_s) == pytest.approx(expected)


def test_operator_who_asks_for_long_pauses_gets_them() -> None:
    assert pause_s(30.0, sweep_s=0.2) == 30.0
