from __future__ import annotations

import math

import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.metrics import EvaluationTotals, Metric, values_of
from fl_protocol.spec.payload_layout import SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.run_specs import resolved_run_spec, run_spec_document

PAIRS = (Metric.LOSS, Metric.PREFERENCE_ACCURACY, Metric.PREFERENCE_MARGIN)
LAYOUT = AdapterLayout(kind="lora", tensors=(TensorSpec(name="x", shape=(4,)),), peft_config={})


def totals(n_units: int, **counts: int) -> EvaluationTotals:
    return EvaluationTotals(loss_sum=30.0, n_units=n_units, n_records=10, counts=counts)


def test_metrics_of_pairs_follow_from_their_counts() -> None:
    # Ten pairs: seven preferred, margins of 2.5 nats above and 4.0 below together.
    found = values_of(PAIRS, totals(10, preferred=7, margin_above=2500, margin_below=4000))
    assert found == {"loss": 3.0, "preference-accuracy": 0.7, "preference-margin": pytest.approx(-0.15)}


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    assert values_of((Metric.PERPLEXITY,), totals(12)) == {"perplexity": pytest.approx(math.exp(2.5))}


@pytest.mark.parametrize("metric", [*PAIRS, Metric.PERPLEXITY])
def test_nothing_that_was_counted_has_no_value(metric: Metric) -> None:
    nothing = EvaluationTotals(
        loss_sum=0.0, n_units=0, n_records=0, counts={"preferred": 0, "margin_above": 0, "margin_below": 0}
    )
    assert values_of((metric,), nothing) == {}


def test_mean_loss_whose_exponential_is_no_float_has_no_perplexity() -> None:
    beyond = EvaluationTotals(loss_sum=710.0, n_units=1, n_records=1)
    assert values_of((Metric.PERPLEXITY,), beyond) == {}


def test_margins_have_room_for_64_nats_a_token_at_every_site() -> None:
    spec = resolved_run_spec(
        {
            "task": {"kind": "preference-alignment"},
            "evaluation.metrics": [metric.value for metric in PAIRS],
            "evaluation.max_records": 100,
            "local.max_length": 50,
        }
    )
    segments = ALGORITHMS["fedavg-lora"].segments(spec, LAYOUT, RoundKind.EVALUATE).segments
    found = {segment.name: (segment.kind, segment.bound) for segment in segments}
    assert found["eval_preferred"] == (SegmentKind.COUNT, 5000.0)
    for name in ("eval_margin_above", "eval_margin_below"):
        assert found[name] == (SegmentKind.COUNT, 5000.0 * 64 * 1000)


@pytest.mark.parametrize(
    ("task", "metrics", "refused"),
    [
        (
            {"kind": "instruction-tuning"},
            ["perplexity", "accuracy", "retrieval-p1", "precision-at-1-next-new", "recall-at-3-any-all"],
            [1, 2, 3, 4],
        ),
        ({"kind": "preference-alignment"}, ["preference-margin", "perplexity", "accuracy"], [1, 2]),
        ({"kind": "concept-timeline", "vocabulary_sha256": "0" * 64}, ["precision-at-5-any-old", "accuracy"], [1]),
    ],
)
def test_metric_that_the_task_does_not_count_is_refused_and_never_left_out(
    task: dict[str, object], metrics: list[str], refused: list[int]
) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(run_spec_document({"task": task, "evaluation.metrics": metrics}))
    assert [fault.path for fault in caught.value.faults] == [f"evaluation.metrics[{number}]" for number in refused]
