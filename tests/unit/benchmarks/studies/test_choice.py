from __future__ import annotations

import pytest

from benchmarks.studies.cells import Cell, Phase
from benchmarks.studies.choice import Setting, choose_setting, search_cells, table_cells
from benchmarks.studies.figures import pooled_value
from tests.unit.benchmarks.studies.cells_for_tests import cell
from wardround.studies.description import Arm, Better, SearchGrid

GRID = SearchGrid(learning_rates=(0.1, 0.2), steps=(4, 8), validation_fraction=0.1)
ARMS = (Arm.BEFORE, Arm.FEDERATED, Arm.LOCAL)

# Validation loss by arm, rate and steps; of `local`, of each of its two sites.
FEDERATED = {(0.1, 4): 3.0, (0.2, 4): 2.0, (0.1, 8): 1.0, (0.2, 8): 5.0}
LOCAL = {(0.1, 4): (2.0, 4.0), (0.2, 4): (3.0, 5.0), (0.1, 8): (4.0, 6.0), (0.2, 8): (1.0, 4.0)}


def searched() -> list[Cell]:
    cells = [
        cell(Arm.FEDERATED, {"x": loss}, phase=Phase.SEARCH, learning_rate=rate, steps=steps)
        for (rate, steps), loss in FEDERATED.items()
    ]
    return cells + [
        cell(Arm.LOCAL, {"x": loss}, site=site, phase=Phase.SEARCH, learning_rate=rate, steps=steps)
        for (rate, steps), losses in LOCAL.items()
        for site, loss in zip("ab", losses, strict=True)
    ]


def choose(better: Better) -> Setting:
    return choose_setting(
        searched(), value_of=lambda one: pooled_value("loss", one), better=better, grid=GRID, arms=ARMS
    )


def test_one_number_of_steps_is_chosen_for_all_and_the_best_rate_of_each_arm() -> None:
    # 4 steps: best are 2.0 and (2 + 4) / 2 = 3.0, on average 2.5. 8 steps: 1.0 and (1 + 4) / 2 = 2.5, 1.75.
    assert choose(Better.LOWER) == Setting(steps=8, learning_rates={Arm.FEDERATED: 0.1, Arm.LOCAL: 0.2})


def test_metric_that_is_to_be_high_is_chosen_high() -> None:
    # 4 steps: 3.0 and 4.0, on average 3.5. 8 steps: 5.0 and 5.0.
    assert choose(Better.HIGHER) == Setting(steps=8, learning_rates={Arm.FEDERATED: 0.2, Arm.LOCAL: 0.1})


def test_tie_goes_to_fewer_steps_and_the_lower_rate() -> None:
    cells = [
        cell(Arm.POOLED, {"x": 1.0}, phase=Phase.SEARCH, learning_rate=rate, steps=steps)
        for rate in GRID.learning_rates
        for steps in GRID.steps
    ]
    chosen = choose_setting(cells, value_of=lambda _: 1.0, better=Better.LOWER, grid=GRID, arms=[Arm.POOLED])
    assert chosen == Setting(steps=4, learning_rates={Arm.POOLED: 0.1})


def test_search_tries_every_pair_with_every_arm_that_trains() -> None:
    keys = search_cells(GRID, arms=ARMS, sites=["a", "b"], seed=7)
    tried = [(key.arm, key.site, key.learning_rate, key.steps) for key in keys]
    assert len(set(tried)) == len(tried) == 4 * (1 + 2)
    assert {key.phase for key in keys} == {Phase.SEARCH}
    assert {key.seed for key in keys} == {7}


def test_arm_without_has_a_cell_for_each_site_that_it_leaves_out() -> None:
    setting = Setting(steps=8, learning_rates={Arm.FEDERATED: 0.1, Arm.WITHOUT: 0.2})
    arms, sites = (Arm.FEDERATED, Arm.WITHOUT), ["a", "b", "c", "d"]
    keys = table_cells(setting, arms=arms, sites=sites, seeds=(7, 8), without=["b", "d"])
    assert [(key.arm, key.site) for key in keys if key.seed == 7] == [
        (Arm.FEDERATED, ""),
        (Arm.WITHOUT, "b"),
        (Arm.WITHOUT, "d"),
    ]
    assert len(keys) == 2 * 3
    searched = search_cells(GRID, arms=arms, sites=sites, seed=7, without=["d"])
    assert {(key.arm, key.site) for key in searched} == {(Arm.FEDERATED, ""), (Arm.WITHOUT, "d")}
    assert keys[1].sentence() == "table: without b, seed 7"


@pytest.mark.parametrize("seeds", [(7,), (7, 8, 9)])
def test_table_has_every_arm_and_seed_with_equal_steps(seeds: tuple[int, ...]) -> None:
    setting = Setting(steps=8, learning_rates={Arm.FEDERATED: 0.1, Arm.LOCAL: 0.2})
    keys = table_cells(setting, arms=ARMS, sites=["a", "b", "c"], seeds=seeds)
    assert len(keys) == len(seeds) * (1 + 1 + 3)
    assert {key.steps for key in keys if key.arm is not Arm.BEFORE} == {8}
    assert {key.site for key in keys if key.arm is Arm.LOCAL} == {"a", "b", "c"}
    assert [key.seed for key in keys] == sorted(key.seed for key in keys), "a seed is whole before the next"
