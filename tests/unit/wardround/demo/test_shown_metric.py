from __future__ import annotations

from collections.abc import Mapping

import pytest

from wardround.demo.shown_metric import change_of
from wardround.studies.description import Better, ShownMetric

LOSS = ShownMetric(name="loss", unit="nats a token", better=Better.LOWER)
HITS = ShownMetric(name="p_at_1", unit="part", better=Better.HIGHER)


def line(kind: str, eval_loss: float | None, **metrics: float) -> Mapping[str, object]:
    return {"kind": kind, "eval_loss": eval_loss, "metrics": metrics}


ROUNDS = (line("train", 4.0, p_at_1=0.1), line("train", None), line("evaluate", 3.0, p_at_1=0.25))


def test_loss_is_taken_from_the_first_and_the_last_evaluation() -> None:
    change = change_of(LOSS, ROUNDS)
    assert (change.before, change.after, change.is_better) == (4.0, 3.0, True)
    assert change.sentence() == "4.0000 before, 3.0000 after (-25.0%); nats a token, lower is better"


def test_other_metric_is_taken_from_the_round_s_metrics() -> None:
    change = change_of(HITS, ROUNDS)
    assert (change.before, change.after, change.is_better) == (0.1, 0.25, True)
    assert change.to_document() == {
        "name": "p_at_1",
        "unit": "part",
        "better": "higher",
        "before": 0.1,
        "after": 0.25,
    }


def test_metric_that_fell_though_it_should_rise_is_not_better() -> None:
    rounds = (line("train", 1.0, p_at_1=0.5), line("evaluate", 1.0, p_at_1=0.25))
    assert change_of(HITS, rounds).is_better is False


@pytest.mark.parametrize("rounds", [(), (line("train", None),), (line("evaluate", 2.0),)])
def test_figure_that_was_not_measured_is_none(rounds: tuple[Mapping[str, object], ...]) -> None:
    change = change_of(LOSS, rounds)
    assert change.before is None
    assert change.is_better is None
    assert change.sentence().startswith("- before")
