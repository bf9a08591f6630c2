from __future__ import annotations

import math

import pytest

from benchmarks.studies.cells import Cell
from benchmarks.studies.figures import pooled_value, rows_of_table, spread_of
from tests.unit.benchmarks.studies.cells_for_tests import cell, sums
from wardround.studies.description import Arm, Better, ShownMetric

LOSS = ShownMetric(name="loss", unit="nats a token", better=Better.LOWER)
SCORE = ShownMetric(name="loss", unit="points", better=Better.HIGHER)


def test_spread_is_mean_and_sample_standard_deviation() -> None:
    spread = spread_of([1.0, 2.0, 6.0])
    assert spread.mean == 3.0
    assert spread.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert spread_of([2.0]).deviation is None
    assert spread_of([2.0]).text(2) == "2.00"


def test_pooled_value_weighs_sites_by_their_units() -> None:
    one = cell(Arm.FEDERATED, {"a": 1.0})
    both = {"a": sums(1.0, n_units=30), "b": sums(3.0, n_units=10)}
    changed = Cell(**{**{name: getattr(one, name) for name in one.__slots__}, "sites": both})
    assert pooled_value("loss", changed) == (30 + 30) / 40


def table_cells() -> list[Cell]:
    cells = []
    for seed, shift in ((7, 0.0), (8, 0.2)):
        cells += [
            cell(Arm.BEFORE, {"a": 5.0, "b": 5.0}, seed=seed, steps=0),
            cell(Arm.FEDERATED, {"a": 1.0 + shift, "b": 3.0 + shift}, seed=seed),
            cell(Arm.LOCAL, {"a": 1.0 + shift, "b": 5.0 + shift}, site="a", seed=seed),
            cell(Arm.LOCAL, {"a": 4.0 + shift, "b": 3.0 + shift}, site="b", seed=seed),
        ]
    return cells


def test_rows_have_every_arm_the_sites_their_mean_and_the_worst() -> None:
    rows = {row.name: row for row in rows_of_table(table_cells(), LOSS)}
    assert list(rows) == [
        "before",
        "federated",
        "local, mean of sites",
        "local, a",
        "local, b",
        "local, worst site (b)",
    ]
    assert rows["federated"].pooled.mean == pytest.approx(2.1)
    assert rows["federated"].worst_site.mean == pytest.approx(3.1)
    # Site a: (1 + 5) / 2 = 3.0, site b: 3.5; with the other seed 0.2 more.
    assert rows["local, mean of sites"].pooled.mean == pytest.approx(3.25 + 0.1)
    assert rows["local, mean of sites"].pooled.deviation == pytest.approx(0.2 / math.sqrt(2))
    assert rows["local, mean of sites"].worst_site.mean == pytest.approx((5.0 + 4.0) / 2 + 0.1)
    assert rows["local, worst site (b)"].pooled.mean == pytest.approx(3.6)


def test_row_of_a_federation_without_a_site_is_named_after_it() -> None:
    cells = [*table_cells(), cell(Arm.WITHOUT, {"a": 2.0, "b": 4.0}, site="b")]
    rows = {row.name: row for row in rows_of_table(cells, LOSS)}
    assert list(rows)[-1] == "without b"
    assert rows["without b"].pooled.mean == pytest.approx(3.0)
    assert rows["without b"].worst_site.mean == pytest.approx(4.0)


def test_worst_goes_by_the_metric_s_direction() -> None:
    rows = {row.name: row for row in rows_of_table(table_cells(), SCORE)}
    assert rows["federated"].worst_site.mean == pytest.approx(1.1)
    assert "local, worst site (a)" in rows


def test_seed_that_is_not_whole_is_left_out_of_local_only() -> None:
    cells = [one for one in table_cells() if (one.key.site, one.key.seed) != ("b", 8)]
    rows = {row.name: row for row in rows_of_table(cells, LOSS)}
    assert rows["local, mean of sites"].pooled.n == 1
    assert rows["federated"].pooled.n == 2
