"""The server rules against numbers worked out by hand (three rounds of one coordinate), and the memory they take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.server_rules import SERVER_RULES
from fl_protocol.folds.server_rules.rule import ServerStateMismatchError
from fl_protocol.spec.run_spec_parts import AlgorithmName
from fl_protocol.spec.server_spec import ServerOptimizerName, ServerSpec

ROUND = {"learning_rate": 0.5, "tau": 1.0, "beta1": 0.5, "beta2": 0.75}
"""Parameters with which the moments are short binary fractions. D is 1/2, -1/4, 1/8 and theta begins at 1."""

DEFAULT: Mapping[str, float] = {}
"""OpenFedLLM's: eta = tau = 1e-3, beta1 = .9, beta2 = .99. D is 2e-3, -1e-3, 4e-3 and theta begins at 1."""

MEANS = {id(ROUND): (0.5, -0.25, 0.125), id(DEFAULT): (2e-3, -1e-3, 4e-3)}


def own(optimizer: str, parameters: Mapping[str, float]) -> ServerSpec:
    name = ServerOptimizerName(optimizer)
    return ServerSpec(
        optimizer=name, **{k: v for k, v in parameters.items() if k in ServerSpec(optimizer=name).parameters}
    )


def adapters_of_three_rounds(spec: ServerSpec, means: tuple[float, ...]) -> tuple[list[float], dict[str, np.ndarray]]:
    theta = {"t": np.ones((1, 1), np.float32)}
    server: dict[str, np.ndarray] = {}
    seen: list[float] = []
    for mean in means:
        step = SERVER_RULES[spec.optimizer](theta, {"t": np.full((1, 1), mean, np.float32)}, server, spec)
        theta, server = step.adapter, step.server
        seen.append(float(theta["t"][0, 0]))
    return seen, server


# theta after each round; worked out with 30 decimal digits from the equations of learning.md A5 and nothing else.
# fedavgm:    v = 1/2, 1/8, 1/8                                       theta = 1.5, 1.625, 1.75
# fedadagrad: s = 5/4, 21/16, 85/64                                   theta_1 = 1 + (1/4) / (1 + sqrt(5/4))
# fedadam:    m = 1/2, 1/8, 1/8    s = 13/16, 157/256, 475/1024       theta_1 = 1 + (1/4) / (1 + sqrt(13/16))
# fedyogi:    m = 1/2, 1/8, 1/8    s = 15/16, 239/256, 119/128        theta_1 = 1 + (1/4) / (1 + sqrt(15/16))
@pytest.mark.parametrize(
    ("optimizer", "parameters", "expected"),
    [
        ("fedavg", ROUND, (1.5, 1.25, 1.375)),
        ("fedavgm", ROUND, (1.5, 1.625, 1.75)),
        ("fedadagrad", ROUND, (1.1180339887498948, 1.0597764192543108, 1.0888131920469986)),
        ("fedadam", ROUND, (1.1314829081786702, 1.1665337759954210, 1.2037123016139880)),
        ("fedyogi", ROUND, (1.1270166537925831, 1.1588034282784474, 1.1906229493594745)),
        # The defaults; fedyogi's second moment rises here: it is below m^2 in each round.
        ("fedavgm", DEFAULT, (1.002, 1.0037, 1.00563)),
        ("fedadagrad", DEFAULT, (1.0006180339887498, 1.0003281360401932, 1.0010310723753977)),
        ("fedadam", DEFAULT, (1.0009926104339481, 1.0018325265195655, 1.0027799996373888)),
        ("fedyogi", DEFAULT, (1.0009901951359278, 1.0018260375528643, 1.0027667042990957)),
    ],
)
def test_rule_of_three_rounds_gives_the_numbers_worked_out_by_hand(
    optimizer: str, parameters: Mapping[str, float], expected: tuple[float, ...]
) -> None:
    seen, _ = adapters_of_three_rounds(own(optimizer, parameters), MEANS[id(parameters)])
    # Near 1 a float32 is exact to 6e-8; three rounds of six roundings each.
    np.testing.assert_allclose(seen, expected, rtol=0, atol=3 * 6 * 2.0**-24)


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        ("fedavgm", {"first_moment": 1 / 8}),
        ("fedadagrad", {"second_moment": 85 / 64}),
        ("fedadam", {"first_moment": 1 / 8, "second_moment": 475 / 1024}),
        ("fedyogi", {"first_moment": 1 / 8, "second_moment": 119 / 128}),
    ],
)
def test_moments_after_three_rounds_are_the_fractions_worked_out_by_hand(
    optimizer: str, moments: dict[str, float]
) -> None:
    _, server = adapters_of_three_rounds(own(optimizer, ROUND), MEANS[id(ROUND)])
    # All of them are short binary fractions: no rounding can have happened.
    assert {name: float(array[0, 0]) for name, array in server.items()} == {
        f"{moment}.t": value for moment, value in moments.items()
    }


def test_yogi_at_the_same_second_moment_does_not_move_it() -> None:
    # s_0 = tau^2 = 1 and m = D = 1: sign(s - m^2) is 0.
    spec = own("fedyogi", ROUND)
    step = SERVER_RULES[spec.optimizer]({"t": np.zeros((1,), np.float32)}, {"t": np.ones((1,), np.float32)}, {}, spec)
    assert step.server["second_moment.t"].tolist() == [1.0]
    assert step.adapter["t"].tolist() == [0.25]


def test_tables_have_a_row_for_every_name_that_a_spec_may_say() -> None:
    assert set(ALGORITHMS) == {name.value for name in AlgorithmName}
    assert set(SERVER_RULES) == set(ServerOptimizerName)


def test_fedavg_adds_the_mean_update_in_float32() -> None:
    theta = {"a": np.array([1.0, 16777216.0], np.float32)}
    mean = {"a": np.array([2.0**-25, 1.0], np.float32)}
    step = SERVER_RULES[ServerOptimizerName.FEDAVG](theta, mean, {"s": np.ones(1)}, own("fedavg", {}))
    # Both additions round back to theta: the sum is taken in float32 and nowhere wider.
    assert step.adapter["a"].tolist() == [1.0, 16777216.0]
    assert step.adapter["a"].dtype == np.float32
    assert step.server["s"].tolist() == [1.0]
    assert theta["a"].tolist() == [1.0, 16777216.0]


@pytest.mark.parametrize("optimizer", list(ServerOptimizerName))
def test_rule_leaves_adapter_and_server_alone_and_carries_what_is_not_its_own(optimizer: ServerOptimizerName) -> None:
    rng = np.random.default_rng(3)
    spec = ServerSpec(optimizer=optimizer)
    shapes = {"a": (3, 5), "b": (7,)}
    theta = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    other = {"control.a": rng.normal(size=(3, 5)).astype(np.float32)}

    def mean() -> dict[str, np.ndarray]:
        return {name: np.full(shape, 1e-3, np.float32) for name, shape in shapes.items()}

    first = SERVER_RULES[optimizer](theta, mean(), other, spec)
    before = PublicState(version=1, adapter=first.adapter, server=first.server).to_bytes()
    second = SERVER_RULES[optimizer](first.adapter, mean(), first.server, spec)
    assert PublicState(version=1, adapter=first.adapter, server=first.server).to_bytes() == before
    assert second.server["control.a"].tolist() == other["control.a"].tolist()
    assert set(second.server) == set(first.server)
    # What it left can be read again, and goes on to the same bits.
    read = PublicState.from_bytes(before)
    again = SERVER_RULES[optimizer](dict(read.adapter), mean(), dict(read.server), spec)
    assert all(np.array_equal(again.adapter[name], second.adapter[name]) for name in shapes)
    assert all(np.array_equal(again.server[name], second.server[name]) for name in second.server)


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_rule_over_another_rules_state_is_refused(change: str) -> None:
    theta = {"a": np.zeros((2,), np.float32), "b": np.zeros((2,), np.float32)}
    server = {
        f"{moment}.{name}": np.ones((2,), np.float32) for moment in ("first_moment", "second_moment") for name in theta
    }
    if change == "missing":
        del server["second_moment.b"]
    elif change == "shape":
        server["second_moment.b"] = np.ones((3,), np.float32)
    else:
        server["second_moment.b"] = np.ones((2,), np.float64)
    mean = {name: np.ones((2,), np.float32) for name in theta}
    with pytest.raises(ServerStateMismatchError) as caught:
        SERVER_RULES[ServerOptimizerName.FEDADAM](theta, mean, server, own("fedadam", {}))
    assert caught.value.facts == {"moment": "second_moment", "tensor": "b"}


@pytest.mark.parametrize(
    ("optimizer", "n_moments"), [("fedavg", 0), ("fedavgm", 1), ("fedadagrad", 1), ("fedyogi", 2), ("fedadam", 2)]
)
def test_rule_takes_the_memory_of_its_moments_and_of_nothing_else(optimizer: str, n_moments: int) -> None:
    size = 3_000_000
    spec = own(optimizer, {})
    theta, mean = {"t": np.zeros(size, np.float32)}, {"t": np.full(size, 1e-3, np.float32)}
    before = SERVER_RULES[spec.optimizer]({"t": theta["t"]}, {"t": mean["t"].copy()}, {}, spec).server
    tracemalloc.start()
    step = SERVER_RULES[spec.optimizer](theta, mean, before, spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(step.adapter["t"], mean["t"])
    assert peak < n_moments * 4 * size + 2_000_000
