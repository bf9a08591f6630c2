"""The table of an unseen domain: means and spreads by arm and judge, by hand."""

from __future__ import annotations

from benchmarks.unseen_domain import table


def test_table_has_the_mean_and_the_spread_of_each_arm_as_each_judge_has_it() -> None:
    cells = [
        {"arm": "zero-shot", "seed": 1, "held-out": {"loss": 1.0, "accuracy": 0.5}, "unseen": {"loss": 2.0}},
        {"arm": "federated", "seed": 1, "held-out": {"loss": 1.0, "accuracy": 0.8}, "unseen": {"loss": 0.5}},
        {"arm": "federated", "seed": 2, "held-out": {"loss": 3.0, "accuracy": 0.9}, "unseen": {"loss": 0.5}},
    ]
    # Two values, 1 and 3: mean 2, standard deviation sqrt(2). One judge has no accuracy, as texts have none.
    assert table({"cells": cells, "held_out_records": {"held-out": 4, "unseen": 3}}).splitlines() == [
        "| arm | judged by | loss | accuracy |",
        "|---|---|---|---|",
        "| zero-shot | held-out | 1.000 ± 0.000 | 0.500 ± 0.000 |",
        "| zero-shot | unseen | 2.000 ± 0.000 | - |",
        "| federated | held-out | 2.000 ± 1.414 | 0.850 ± 0.071 |",
        "| federated | unseen | 0.500 ± 0.000 | - |",
    ]
