from __future__ import annotations

import pytest

from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec, run_spec_from_bytes
from fl_protocol.testing.run_specs import resolved_run_spec, run_spec_document


def spec_of(server: dict[str, object]) -> RunSpec:
    return parse_run_spec(run_spec_document({"aggregation.server": server}))


@pytest.mark.parametrize(
    ("optimizer", "parameters"),
    [
        ("fedavg", {}),
        ("fedavgm", {"beta1": 0.9}),
        ("fedadagrad", {"learning_rate": 1e-3, "tau": 1e-3}),
        ("fedyogi", {"learning_rate": 1e-3, "tau": 1e-3, "beta1": 0.9, "beta2": 0.99}),
        ("fedadam", {"learning_rate": 1e-3, "tau": 1e-3, "beta1": 0.9, "beta2": 0.99}),
    ],
)
def test_rule_without_parameters_has_the_defaults_of_openfedllm_and_no_others(
    optimizer: str, parameters: dict[str, float]
) -> None:
    document = spec_of({"optimizer": optimizer}).to_document()
    assert document["aggregation"] == {
        "algorithm": "fedavg-lora",
        "server": {"optimizer": optimizer, **parameters},
    }


def test_parameters_that_are_set_are_read_and_written() -> None:
    server = {"optimizer": "fedadam", "learning_rate": 0.25, "tau": 0.5, "beta1": 0.0, "beta2": 0.75}
    spec = resolved_run_spec({"aggregation.server": server})
    assert spec.aggregation.server.to_document() == server
    assert run_spec_from_bytes(spec.canonical_bytes()) == spec


@pytest.mark.parametrize(
    ("server", "key", "message"),
    [
        ({"optimizer": "fedavg", "beta1": 0.9}, "beta1", "fedavg has no such parameter (it has: none)"),
        ({"optimizer": "fedavgm", "tau": 1e-3}, "tau", "fedavgm has no such parameter (it has: beta1)"),
        ({"optimizer": "fedadagrad", "beta2": 0.9}, "beta2", "fedadagrad has no such parameter"),
        ({"optimizer": "fedadam", "momentum": 0.9}, "momentum", "is not a known key"),
        ({"optimizer": "fedadam", "beta1": 1.0}, "beta1", "must be less than 1"),
        ({"optimizer": "fedadam", "beta2": -0.1}, "beta2", "must be at least 0"),
        ({"optimizer": "fedyogi", "tau": 0}, "tau", "must be at least 1e-15"),
        ({"optimizer": "fedyogi", "learning_rate": 0}, "learning_rate", "must be greater than 0"),
        ({"optimizer": "sgd"}, "optimizer", "not in this version"),
    ],
)
def test_parameter_that_the_rule_does_not_have_or_admit_is_one_fault(
    server: dict[str, object], key: str, message: str
) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        spec_of(server)
    (fault,) = caught.value.faults
    assert fault.path == f"aggregation.server.{key}"
    assert message in fault.message
