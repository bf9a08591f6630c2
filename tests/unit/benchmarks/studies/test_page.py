from __future__ import annotations

import math

import pytest

from benchmarks.studies.cells import Phase
from benchmarks.studies.errors import TableMixedError
from benchmarks.studies.page import BEGIN, END, block_of, page_with_block
from benchmarks.studies.table_file import Table
from tests.unit.benchmarks.studies.cells_for_tests import cell
from wardround.studies.description import Arm, Better, ShownMetric

LOSS = ShownMetric(name="loss", unit="nats a token", better=Better.LOWER)
COMMON = {
    "run_spec": {"rounds": 3, "local": {"batch_size": 4}, "privacy": {"clip_norm": 8.0}},
    "validation_fraction": 0.1,
    "surroundings": {"device": "cpu", "precision": "float32", "versions": {"torch": "2.13.0"}},
}


def table() -> Table:
    made = Table(study="s", common={"c": COMMON}, machines=[{"cpu": "x", "cores": 2}])
    made.chosen = {"steps": 6, "learning_rates": {"federated": 0.2}}
    for seed in (7, 8):
        made.put(cell(Arm.BEFORE, {"a": 4.0, "b": 4.0}, seed=seed, steps=0))
        made.put(cell(Arm.FEDERATED, {"a": 1.0 + seed / 100, "b": 3.0}, seed=seed))
        made.put(cell(Arm.LOCAL, {"a": 2.0, "b": 4.0}, site="a", seed=seed))
        made.put(cell(Arm.LOCAL, {"a": 4.0, "b": 4.0}, site="b", seed=seed))
    for rate, loss in ((0.1, 3.0), (0.2, 2.5)):
        made.put(cell(Arm.FEDERATED, {"a": loss}, phase=Phase.SEARCH, learning_rate=rate))
    return made


def test_block_shows_arms_search_and_what_was_measured_on() -> None:
    block = block_of(table(), LOSS)
    assert block.startswith(BEGIN)
    assert block.endswith(END)
    assert "over 2 seeds. Every arm that trains: 3 rounds of 6 optimiser steps of 4 records." in block
    # Seeds 7 and 8: 2.035 and 2.04; mean 2.0375, deviation 0.005 / sqrt 2.
    assert "| federated | 0.5 | 2.0375 ± 0.0035 | 3.0000 ± 0.0000 |" in block
    assert "| before | - | 4.0000 ± 0.0000 |" in block
    assert "- Federated is better than the mean of local-only by 1.4625, 413.7 times the larger deviation." in block
    assert "| federated | 6 | 0.1 | 3.0000 |  |" in block
    assert "| federated | 6 | 0.2 | 2.5000 | yes |" in block
    assert "10% of the persons" in block
    assert "median 2.00, largest 3.00; `clip_norm` is 8.0" in block


def test_block_says_where_federation_is_worse() -> None:
    made = table()
    made.put(cell(Arm.POOLED, {"a": 1.0, "b": 1.0}, seed=7))
    assert "- Federated is worse than pooled by 1.0375" in block_of(made, LOSS)


def test_block_holds_a_federation_without_a_site_against_the_whole_one() -> None:
    made = table()
    made.put(cell(Arm.WITHOUT, {"a": 2.0, "b": 4.0}, site="b", seed=7))
    block = block_of(made, LOSS)
    assert "| without b | 0.5 | 3.0000 | 4.0000 |" in block
    assert "- Federated is better than the same without b by 0.9625" in block


def test_the_other_metrics_of_the_run_stand_beside_the_one_that_a_study_is_judged_by() -> None:
    made = table()
    spec = {**COMMON["run_spec"], "evaluation": {"metrics": ["perplexity", "loss"]}}
    made.common["c"] = {**COMMON, "run_spec": spec}
    block = block_of(made, LOSS)
    assert "| arm | `perplexity` |" in block
    # Mean losses of 2.035 and 2.04 nats: e to their powers, whose deviation is their difference / sqrt 2.
    first, second = math.exp(2.035), math.exp(2.04)
    shown = f"{(first + second) / 2:.4f} ± {(second - first) / math.sqrt(2):.4f}"
    assert f"| federated | {shown} |" in block
    others = block.split("| arm | `perplexity` |")[1]
    assert "| local, a |" in others
    assert "local, worst site" not in others
    assert "`perplexity`" not in block_of(table(), LOSS)


def test_cells_of_different_settings_are_not_shown_side_by_side() -> None:
    made = table()
    made.put(cell(Arm.POOLED, {"a": 1.0}, common_sha256="other"))
    with pytest.raises(TableMixedError):
        block_of(made, LOSS)


def test_page_keeps_the_prose_around_the_block_and_is_the_same_when_written_again() -> None:
    block = block_of(table(), LOSS)
    page = page_with_block("# Study\n\nBefore.\n", block)
    assert page == f"# Study\n\nBefore.\n\n{block}\n"
    later = page + "\nAfter, with \\1 in it.\n"
    other = block.replace("2.0375", "1.0000")
    changed = page_with_block(later, other)
    assert changed == later.replace(block, other)
    assert page_with_block(changed, other) == changed
