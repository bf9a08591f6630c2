from __future__ import annotations

import pytest

from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.run_spec import parse_run_spec, run_spec_from_bytes
from fl_protocol.testing.run_specs import resolved_run_spec, run_spec_document


def test_parameters_of_other_rules_and_schedules_are_not_in_the_document() -> None:
    local = parse_run_spec(run_spec_document()).to_document()["local"]
    assert isinstance(local, dict)
    assert {"mu", "min_learning_rate"}.isdisjoint(local)


def test_fedprox_and_cosine_by_round_have_openfedllms_defaults() -> None:
    spec = resolved_run_spec({"local.rule": "fedprox", "local.schedule": "cosine-by-round"})
    local = spec.to_document()["local"]
    assert isinstance(local, dict)
    assert (local["mu"], local["min_learning_rate"]) == (0.01, 1e-6)
    assert run_spec_from_bytes(spec.canonical_bytes()) == spec


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"local.mu": 0.1}, "mu", "is not a known key"),
        ({"local.rule": "fedprox", "local.mu": -1}, "mu", "must be at least 0"),
        ({"local.min_learning_rate": 1e-6}, "min_learning_rate", "is not a known key"),
        (
            {"local.schedule": "cosine-by-round", "local.min_learning_rate": 1.0},
            "min_learning_rate",
            "must be at most local.learning_rate",
        ),
        ({"local.schedule": "cosine-by-round", "local.warmup_steps": 3}, "warmup_steps", "one rate a round"),
        ({"local.rule": "scaffold"}, "optimizer", "must be sgd"),
        ({"local.rule": "scaffold", "local.optimizer": "adamw"}, "optimizer", "must be sgd"),
    ],
)
def test_what_does_not_go_together_is_one_fault(changes: dict[str, object], key: str, message: str) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(run_spec_document(changes))
    (fault,) = caught.value.faults
    assert fault.path == f"local.{key}"
    assert message in fault.message
