"""By which name a site remembers what a round's payload holds: equal where what is held is, in whichever run."""

from __future__ import annotations

import numpy as np
import pytest

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.testing.run_specs import run_spec_document
from site_agent.supervision.admission import evaluation_of

DATASET = "ab" * 32
ZEROS, ONE = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]


def vocabulary_run(**changes: object) -> RunSpec:
    whole: dict[str, object] = {
        "task": {"kind": "concept-vocabulary", "threshold": 50, "min_sites": 2},
        "adapter": {"kind": "published-codes"},
        "aggregation.algorithm": "thresholded-counts",
        "rounds": 1,
    }
    return parse_run_spec(run_spec_document({**whole, **changes}))


def state_of(values: list[float]) -> PublicState:
    return PublicState(version=0, adapter={"published": np.array(values, dtype=np.float32)})


def name_of_counts(spec: RunSpec, values: list[float] = ZEROS, dataset: str = DATASET) -> str:
    found = evaluation_of(spec, RoundKind.TRAIN, state=state_of(values), dataset_sha256=dataset)
    assert not found.is_alone
    return found.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": {"kind": "concept-vocabulary", "threshold": 51, "min_sites": 3}},
        {"privacy.weight_cap": 77},
        {"local.seed": 4},
        {"cohort.sites": ["alpha", "beta", "gamma"]},
    ],
)
@pytest.mark.parametrize("values", [ZEROS, ONE])
def test_counts_of_one_list_and_dataset_have_one_name_whatever_a_run_says_beside(
    changes: dict[str, object], values: list[float]
) -> None:
    assert name_of_counts(vocabulary_run(**changes), values) == name_of_counts(vocabulary_run())


def test_counts_of_another_list_or_dataset_have_another_name() -> None:
    other_list = vocabulary_run(**{"base_model.sha256": "ee" * 32})
    names = {
        name_of_counts(vocabulary_run()),
        name_of_counts(other_list),
        name_of_counts(vocabulary_run(), ZEROS, "cd" * 32),
    }
    assert len(names) == 3


def test_what_evaluates_is_named_by_its_adapter() -> None:
    spec = parse_run_spec(run_spec_document({}))
    found = [
        evaluation_of(spec, kind, state=state_of(values), dataset_sha256=DATASET)
        for kind in (RoundKind.TRAIN, RoundKind.EVALUATE)
        for values in (ZEROS, ONE)
    ]
    assert [one.is_alone for one in found] == [False, False, True, True]
    assert found[0].sha256 == found[2].sha256 != found[1].sha256 == found[3].sha256
