"""What a RunSpec says of timelines: the sections, their defaults, and the metrics of rankings."""

from __future__ import annotations

import pytest

from fl_protocol.spec.metrics import METRICS, EvaluationTotals, Metric, counts_of, values_of
from fl_protocol.spec.run_spec import RunSpecFaultsError, parse_run_spec
from fl_protocol.testing.run_specs import run_spec_document

TASK = {"kind": "concept-timeline", "vocabulary_sha256": "cd" * 32}


def test_concept_timeline_is_rendered_with_its_defaults() -> None:
    spec = parse_run_spec(run_spec_document({"task": TASK, "adapter": {"kind": "full"}}))
    assert spec.to_document()["task"] == {
        "kind": "concept-timeline",
        "vocabulary_sha256": "cd" * 32,
        "min_tokens": 5,
        "occurrences": "first",
        "time_range_days": 365,
    }
    assert spec.to_document()["adapter"] == {"kind": "full", "layout_sha256": None, "initial_sha256": None}
    assert parse_run_spec(spec.to_document()).canonical_bytes() == spec.canonical_bytes()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"task": {"kind": "concept-timeline"}}, "task.vocabulary_sha256"),
        ({"task": {**TASK, "vocabulary_sha256": "x"}}, "task.vocabulary_sha256"),
        ({"task": {**TASK, "min_tokens": 0}}, "task.min_tokens"),
        ({"task": {**TASK, "occurrences": "last"}}, "task.occurrences"),
        ({"task": {**TASK, "time_range_days": -1}}, "task.time_range_days"),
        ({"task": {**TASK, "template": "chat"}}, "task.template"),
        ({"task": TASK, "adapter": {"kind": "full", "rank": 8}}, "adapter.rank"),
        ({"adapter": {"kind": "full"}}, "adapter.kind"),
    ],
)
def test_section_that_is_wrong_is_refused_by_its_path(changes: dict[str, object], path: str) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(run_spec_document(changes))
    assert path in {fault.path for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"aggregation": {"algorithm": "thresholded-counts", "server": {"optimizer": "fedadam"}}},
         "aggregation.server.optimizer"),
        ({"local.rule": "fedprox"}, "local.rule"),
    ],
)  # fmt: skip
def test_rule_that_a_run_which_counts_would_not_follow_is_refused(changes: dict[str, object], path: str) -> None:
    counting = {
        "task": {"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2, "site_minimum": 5},
        "adapter": {"kind": "published-codes"},
        "aggregation": {"algorithm": "thresholded-counts"},
        "rounds": 1,
    }
    parse_run_spec(run_spec_document(counting))
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(run_spec_document({**counting, **changes}))
    assert [fault.path for fault in caught.value.faults] == [path]


def test_metrics_of_rankings_name_their_counts_and_are_their_quotients() -> None:
    metrics = [Metric("precision-at-3-next-new"), Metric("recall-at-5-time-range-old")]
    counts = {
        "next_new_hits_3": 2,
        "next_new_positions": 8,
        "time_range_old_found_5": 3,
        "time_range_old_events": 4,
    }
    assert counts_of(metrics) == tuple(sorted(counts))
    totals = EvaluationTotals(loss_sum=1.0, n_units=9, n_records=2, counts=counts)
    assert values_of(metrics, totals) == {"precision-at-3-next-new": 0.25, "recall-at-5-time-range-old": 0.75}
    empty = EvaluationTotals(loss_sum=0.0, n_units=0, n_records=0, counts=dict.fromkeys(counts, 0))
    assert values_of(metrics, empty) == {}


def test_metrics_of_rankings_are_all_there_once() -> None:
    # 3 scopes x 3 novelties x 3 lengths for precision, without the scope next for recall; and the loss.
    assert sum(metric.value.startswith("precision-at-") for metric in METRICS) == 27
    assert sum(metric.value.startswith("recall-at-") for metric in METRICS) == 18
    assert set(METRICS) == set(Metric)
