"""Tasks on images in a RunSpec: what is read, what is refused, and what goes only together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.metrics import METRICS, EvaluationTotals, Metric
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpecFaultsError, parse_run_spec, run_spec_from_bytes
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterLayoutSparseError
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.testing.run_specs import run_spec_document

CLASSES = [{"name": "a b", "prompts": ["one", "two"]}, {"name": "c", "prompts": ["three"]}]
ADAPTER = {"kind": "image-text-adapter", "classes": CLASSES}
CONTRASTIVE = {"kind": "image-text-contrastive", "classes": [{**CLASSES[0], "terms": ["x", "y"]}, CLASSES[1]]}


def document(task: Mapping[str, object], adapter: str, metrics: tuple[str, ...] = ("loss",)) -> dict[str, object]:
    made = run_spec_document({})
    evaluation = made["evaluation"]
    assert isinstance(evaluation, Mapping)
    return {**made, "task": task, "adapter": {"kind": adapter}, "evaluation": {**evaluation, "metrics": list(metrics)}}


def faults(made: Mapping[str, object]) -> list[str]:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(made)
    return [fault.path for fault in caught.value.faults]


def test_specifications_are_read_again_from_their_own_bytes() -> None:
    for task, adapter in ((ADAPTER, "attention"), (ADAPTER, "joint-projection"), (CONTRASTIVE, "joint-projection")):
        spec = parse_run_spec(document(task, adapter))
        assert run_spec_from_bytes(spec.canonical_bytes()) == spec
        assert spec.adapter.low_rank is None
        assert not spec.adapter.has_dropout


def test_defaults_are_written_out() -> None:
    assert parse_run_spec(document(ADAPTER, "attention")).task.to_document() == {
        **ADAPTER, "targets": "diagonal", "ensemble": "mean",
    }  # fmt: skip
    assert parse_run_spec(document(CONTRASTIVE, "joint-projection")).task.to_document() == {
        **CONTRASTIVE, "similarity": "cosine", "labeller": "lexicon", "ensemble": "mean",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ({**ADAPTER, "classes": []}, "task.classes"),
        ({**ADAPTER, "classes": CLASSES[:1]}, "task.classes"),
        ({**ADAPTER, "classes": [CLASSES[0], CLASSES[0]]}, "task.classes[1].name"),
        ({**ADAPTER, "classes": [CLASSES[0], {"name": "-c", "prompts": ["x"]}]}, "task.classes[1].name"),
        ({**ADAPTER, "classes": [CLASSES[0], {"name": "c", "prompts": []}]}, "task.classes[1].prompts"),
        ({**ADAPTER, "classes": [CLASSES[0], {"name": "c", "prompts": ["x", "x"]}]}, "task.classes[1].prompts[1]"),
        ({**ADAPTER, "classes": [CLASSES[0], {"name": "c", "prompts": ["a\nb"]}]}, "task.classes[1].prompts[0]"),
        ({**ADAPTER, "classes": [CLASSES[0], {"name": "c", "prompts": ["x" * 301]}]}, "task.classes[1].prompts[0]"),
        ({**ADAPTER, "classes": [CLASSES[0], {**CLASSES[1], "terms": ["x"]}]}, "task.classes[1].terms"),
        ({**ADAPTER, "classes": [CLASSES[0], 7]}, "task.classes[1]"),
        ({**ADAPTER, "targets": "all"}, "task.targets"),
        ({**ADAPTER, "code": "x"}, "task.code"),
    ],
)
def test_fault_of_the_section_is_told_with_its_path(task: Mapping[str, object], path: str) -> None:
    assert path in faults(document(task, "attention"))


def test_unknown_similarity_and_labeller_are_refused() -> None:
    task = {**CONTRASTIVE, "similarity": "l2", "labeller": "umls"}
    assert {"task.similarity", "task.labeller"} <= set(faults(document(task, "joint-projection")))


def test_attention_is_refused_where_texts_would_train_nothing() -> None:
    assert faults(document(CONTRASTIVE, "attention")) == ["adapter.kind"]


def test_adapters_behind_towers_and_tasks_of_language_models_are_no_pair() -> None:
    made = run_spec_document({})
    assert faults({**made, "adapter": {"kind": "attention"}}) == ["adapter.kind"]
    assert faults({**made, "task": ADAPTER}) == ["adapter.kind"]


def test_precision_at_k_needs_k_candidates() -> None:
    assert faults(document(ADAPTER, "attention", ("loss", "retrieval-p5"))) == ["evaluation.metrics"]
    parse_run_spec(document(ADAPTER, "attention", ("retrieval-p1", "retrieval-p3")))


def test_metrics_are_ratios_of_sums() -> None:
    counts = {"correct": 6, "classified": 8, "queried": 10} | {f"relevant_at_{k}": 10 - k for k in range(1, 6)}
    totals = EvaluationTotals(loss_sum=1.0, n_units=12, n_records=12, counts=counts)
    assert METRICS[Metric.ACCURACY].value(totals) == 0.75
    assert METRICS[Metric.RETRIEVAL_P1].value(totals) == 0.9
    assert METRICS[Metric.RETRIEVAL_P3].value(totals) == (9 + 8 + 7) / 30
    assert METRICS[Metric.RETRIEVAL_P5].value(totals) == (9 + 8 + 7 + 6 + 5) / 50
    nothing = EvaluationTotals(loss_sum=0.0, n_units=0, n_records=0, counts=dict.fromkeys(counts, 0))
    assert METRICS[Metric.ACCURACY].value(nothing) is None
    assert METRICS[Metric.RETRIEVAL_P3].value(nothing) is None


def test_payload_has_a_segment_for_each_count_of_the_runs_metrics() -> None:
    spec = parse_run_spec(document(ADAPTER, "attention", ("accuracy", "retrieval-p3")))
    layout = AdapterLayout(kind="attention", tensors=(TensorSpec(name="t", shape=(40,)),), peft_config={})
    segments = ALGORITHMS["fedavg-lora"].segments(spec, layout, RoundKind.EVALUATE).segments
    counted = {one.name for one in segments} - {"eval_records", "eval_tokens", "eval_loss_sum"}
    assert counted == {
        "eval_correct", "eval_classified", "eval_queried", "eval_relevant_at_1", "eval_relevant_at_2",
        "eval_relevant_at_3",
    }  # fmt: skip


ATTENTION = {"adapter.W1": (4, 4), "adapter.W2": (4, 4), "adapter.b1": (4,), "adapter.b2": (4,)}
JOINT = {"adapter.log_scale": (1,), "adapter.projection": (4, 4)}


def layout(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> AdapterLayout:
    tensors = tuple(TensorSpec(name=name, shape=shape) for name, shape in shapes.items())
    return AdapterLayout(kind=kind, tensors=tensors, peft_config={})


@pytest.mark.parametrize(
    ("kind", "shapes", "refused"),
    [
        ("attention", ATTENTION, None),
        ("attention", {**ATTENTION, "adapter.W2": (4, 3)}, "adapter.W2"),
        ("attention", {**ATTENTION, "text.weight": (4, 4)}, "text.weight"),
        ("attention", {name: shape for name, shape in ATTENTION.items() if name != "adapter.b2"}, "adapter.b2"),
        ("attention", {**ATTENTION, "adapter.W1": (4, 5)}, "adapter.W1"),
        ("joint-projection", JOINT, None),
        ("joint-projection", {**JOINT, "image_projection": (4, 4)}, "image_projection"),
        ("joint-projection", {**JOINT, "adapter.log_scale": (2,)}, "adapter.log_scale"),
        ("joint-projection", ATTENTION, "adapter.W1"),
        ("lora", ATTENTION, "lora"),
    ],
)
def test_site_refuses_a_layout_that_is_not_its_kinds(
    kind: str, shapes: Mapping[str, tuple[int, ...]], refused: str | None
) -> None:
    task = ADAPTER if kind == "attention" else CONTRASTIVE
    spec = parse_run_spec(document(task, "joint-projection" if kind == "joint-projection" else "attention")
                          if kind != "lora" else document(ADAPTER, "attention"))  # fmt: skip
    if refused is None:
        check_layout(layout(kind, shapes), spec.adapter)
        return
    with pytest.raises(AdapterLayoutSparseError) as caught:
        check_layout(layout(kind, shapes), spec.adapter)
    assert caught.value.facts["tensor"] == refused
