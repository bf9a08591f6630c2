"""The words in which a steward reads how a run trains and folds: every parameter, and everything that is in the sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.cli.run_page import classes_of, in_the_sum

MakeRunSpec = Callable[..., RunSpec]

WORDS = {
    "adapter_update": "the update",
    "weight": "the weight",
    "was_clipped": "whether it was clipped",
    "train_tokens": "units in training",
    "train_loss_sum": "loss",
    "eval_records": "how many these are",
    "eval_tokens": "units in training and on held-out records",
    "eval_loss_sum": "held-out",
    "control_update": "control variate",
    "counted": None,
    "layer_weight": "one weight a layer",
    "selected": "reaches the threshold",
    "eval_compared": "whether it has held-out records",
    "eval_made_worse": "whether the adapter does worse on them than the initial one",
}
"""Of each segment, what the page calls it; ``counted`` says 1 at each site that is in the sum."""


def lines_of(run_spec: RunSpec) -> str:
    return f"{run_spec.local.summary} | {run_spec.aggregation.summary}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local.rule": "scaffold", "local.optimizer": "sgd"},
        {"aggregation.algorithm": "fedmed"},
        {"evaluation.metrics": ["loss", "sites-made-worse"]},
    ],
)
def test_every_segment_of_a_training_round_is_in_the_words(
    make_run_spec: MakeRunSpec, layout: AdapterLayout, changes: dict[str, object]
) -> None:
    run_spec = make_run_spec(changes)
    words = in_the_sum(run_spec)
    segments = ALGORITHMS[run_spec.aggregation.algorithm].segments(run_spec, layout, RoundKind.TRAIN).segments
    for segment in segments:
        said = WORDS[segment.name]
        assert said is None or said in words, segment.name
    # And nothing that is not there.
    names = {segment.name for segment in segments}
    for name, said in WORDS.items():
        if name not in names and said is not None:
            assert said not in words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ["plain, adamw at 5e-05, cosine", "fedavg-lora; the server applies the mean by fedavg"]),
        ({"local.rule": "fedprox", "local.mu": 0.25}, ["pulled to the shared adapter, mu 0.25"]),
        ({"local.rule": "scaffold", "local.optimizer": "sgd"}, ["keeps a control variate between rounds", "sgd"]),
        (
            {"aggregation.server": {"optimizer": "fedadam", "tau": 0.5}},
            ["fedadam (learning_rate 0.001, tau 0.5, beta1 0.9, beta2 0.99)"],
        ),
        (
            {"local.schedule": "cosine-by-round", "local.min_learning_rate": 1e-7},
            ["at 5e-05 to 1e-07, cosine-by-round"],
        ),
        (
            {
                "aggregation.algorithm": "fedmed",
                "aggregation.attention": {"distance": "js", "temperature": 0.5, "stall": 0.125, "threshold": 3},
            },
            # exp(1) is 2.7.
            [
                "(js / 0.5), at most 2.7 times another's",
                "the least where the whole update is shorter than 3",
                "fell by less than 0.125, by records otherwise",
            ],
        ),
        ({"aggregation.algorithm": "fedmed", "aggregation.attention": {"gate": "always"}}, ["in every round"]),
    ],
)
def test_summaries_say_every_parameter(make_run_spec: MakeRunSpec, changes: dict[str, object], said: list[str]) -> None:
    text = lines_of(make_run_spec(changes))
    for words in said:
        assert words in text


def test_run_that_counts_says_nothing_of_an_update(make_run_spec: MakeRunSpec) -> None:
    run_spec = make_run_spec(
        {
            "task": {"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2, "site_minimum": 1},
            "adapter": {"kind": "published-codes"},
            "aggregation.algorithm": "thresholded-counts",
            "rounds": 1,
        }
    )
    assert in_the_sum(run_spec) == "patients of each code, and whether there are any; the weight"


def test_steward_reads_each_class_with_its_prompts(make_run_spec: MakeRunSpec) -> None:
    classes = [{"name": "red cell", "prompts": ["one", "two"]}, {"name": "platelet", "prompts": ["three"]}]
    document = make_run_spec({}).to_document()
    document |= {"task": {"kind": "image-text-adapter", "classes": classes}, "adapter": {"kind": "attention"}}
    assert classes_of(parse_run_spec(document)) == [("class red cell", "one; two"), ("class platelet", "three")]
    assert classes_of(make_run_spec({})) == []
