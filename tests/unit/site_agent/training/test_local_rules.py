"""The local rules on losses whose gradients are known, against numbers worked out by hand and against autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import LocalOptimizer, LocalRule
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterTensorError
from fl_protocol.testing.run_specs import resolved_run_spec
from site_agent.training.collate import Example
from site_agent.training.local import LOCAL_RULES
from site_agent.training.local.rule import RoundStart
from site_agent.training.local.steps import LocalSteps, train_in_steps
from site_agent.training.task_half import LossSum

pytestmark = pytest.mark.training

LAYOUT = AdapterLayout(
    kind="lora", tensors=(TensorSpec(name="u", shape=(2,)), TensorSpec(name="w", shape=(1, 2))), peft_config={}
)


def spec_of(rule: str, **changes: object) -> RunSpec:
    optimizer = "sgd" if rule == "scaffold" else "adamw"
    local = {f"local.{key}": value for key, value in changes.items() if key != "clip_norm"}
    return resolved_run_spec(
        {
            "local.rule": rule,
            "local.optimizer": optimizer,
            "local.schedule": "constant",
            "privacy.clip_norm": changes.get("clip_norm", 1000.0),
            **local,
        }
    )


def start_of(
    spec: RunSpec,
    theta: Sequence[float],
    *,
    control: Sequence[float] | None = None,
    own: Sequence[float] | None = None,
    round_index: int = 0,
) -> RoundStart:
    flat = np.array(theta, np.float32)
    server = {} if control is None else LAYOUT.unflatten(np.array(control, np.float32))
    return RoundStart(
        spec=spec,
        round_index=round_index,
        layout=LAYOUT,
        state=PublicState(
            version=round_index,
            adapter=LAYOUT.unflatten(flat),
            server={f"control.{name}": array for name, array in server.items()},
        ),
        private={} if own is None else {"own_control": np.array(own, np.float32)},
    )


def parameters_at(values: Sequence[float]) -> dict[str, torch.nn.Parameter]:
    tensors = LAYOUT.unflatten(np.array(values, np.float32))
    return {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in tensors.items()}


def flat(parameters: Mapping[str, torch.nn.Parameter]) -> np.ndarray:
    return LAYOUT.flatten({name: value.detach().numpy() for name, value in parameters.items()})


class Bowl:
    """A stand-in for a model: the loss is |theta - v|^2 / 2 a token, v the example's number in every coordinate."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = parameters

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        (one,) = examples
        loss = sum(((value - one.prompt_ids[0]) ** 2).sum() / 2 for value in self.parameters.values())
        assert isinstance(loss, torch.Tensor)
        return LossSum(loss=loss, n_units=1)


def train(start: RoundStart, targets: Sequence[int], rates: Sequence[float]) -> np.ndarray:
    """The trained adapter; one example a step."""
    parameters = parameters_at(LAYOUT.flatten(start.state.adapter).tolist())
    train_in_steps(
        parameters,
        [Example(prompt_ids=(value,), completion_ids=(0,)) for value in targets],
        rule=LocalSteps(
            batch_size=1,
            accumulation=1,
            weight_decay=0.0,
            learning_rates=tuple(rates),
            optimizer=LocalOptimizer.SGD,
        ),
        train_loss=Bowl(parameters),
        on_step=lambda _: None,
        correct=LOCAL_RULES[start.spec.local.rule].correction(start, parameters),
    )
    return flat(parameters)


def test_table_has_a_row_for_every_rule_that_a_spec_may_say() -> None:
    assert set(LOCAL_RULES) == set(LocalRule)


def test_sgd_without_a_correction_is_gradient_descent() -> None:
    # theta = 0, targets 4 and 2, rates 1/2 and 1/4: 0 -> 2 -> 2.
    trained = train(start_of(spec_of("plain"), [0, 0, 0, 0]), [4, 2], [0.5, 0.25])
    assert trained.tolist() == [2, 2, 2, 2]


def test_fedprox_adds_the_gradient_of_its_term_as_autograd_has_it() -> None:
    start = start_of(spec_of("fedprox", mu=0.375), [1.0, -2.0, 0.5, 3.0])
    parameters = parameters_at([1.5, 2.0, 0.5, -1.0])
    for value in parameters.values():
        value.grad = torch.full_like(value, 10.0)
    LOCAL_RULES[LocalRule.FEDPROX].correction(start, parameters)()
    anchor = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    free = torch.tensor([1.5, 2.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    (0.375 / 2 * torch.sum((free - anchor) ** 2)).backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    found = np.concatenate([value.grad.reshape(-1).numpy() for value in parameters.values() if value.grad is not None])
    assert found.tolist() == (10.0 + free.grad.numpy()).tolist()
    # By hand: mu (theta - theta_g) = 0.375 x (0.5, 4, 0, -4).
    assert (found - 10.0).tolist() == [0.1875, 1.5, 0.0, -1.5]


def test_fedprox_of_two_steps_is_the_path_worked_out_by_hand() -> None:
    # theta_g = 0, mu = 1/2, target 4, rate 1/2. Step 1: g = -4, at theta_g nothing is added: theta = 2.
    # Step 2: g = -2, plus mu (2 - 0) = 1: theta = 2 + 1/2.
    trained = train(start_of(spec_of("fedprox", mu=0.5), [0, 0, 0, 0]), [4, 4], [0.5, 0.5])
    assert trained.tolist() == [2.5] * 4


def test_fedprox_without_mu_is_plain() -> None:
    of_prox = train(start_of(spec_of("fedprox", mu=0), [0.25, 1, -3, 2]), [4, -1, 2], [0.5, 0.25, 0.125])
    of_plain = train(start_of(spec_of("plain"), [0.25, 1, -3, 2]), [4, -1, 2], [0.5, 0.25, 0.125])
    assert of_prox.tolist() == of_plain.tolist()


def test_scaffold_of_two_steps_is_the_path_worked_out_by_hand() -> None:
    # lr = 1/2 in both steps, so L = 1; theta_g = 0, target 4, c = 1, c_k = -1/2: c - c_k = 3/2.
    # Step 1: g = -4, corrected -5/2: theta = 5/4. Step 2: g = -11/4, corrected -5/4: theta = 15/8 = x.
    # c_k' = c_k - c - x / L = -1/2 - 1 - 15/8 = -27/8, which is (g_1 + g_2) / 2 = (-4 - 11/4) / 2; dc = -23/8.
    spec = spec_of("scaffold", steps=2, learning_rate=0.5)
    start = start_of(spec, [0, 0, 0, 0], control=[1] * 4, own=[-0.5] * 4)
    trained = train(start, [4, 4], [0.5, 0.5])
    assert trained.tolist() == [15 / 8] * 4
    outcome = LOCAL_RULES[LocalRule.SCAFFOLD].finish(start, trained)
    assert outcome.segments["control_update"].tolist() == [-23 / 8] * 4
    assert outcome.private is not None
    assert outcome.private["own_control"].tolist() == [-27 / 8] * 4


def test_scaffold_leaves_the_mean_of_the_gradients_weighted_by_their_rates() -> None:
    # Whatever c and c_k were: c_k' = sum lr_i g_i / sum lr_i. Rates fall from step to step, as under a cosine.
    spec = spec_of("scaffold", steps=4, learning_rate=0.5, schedule="cosine")
    rates = [0.5 * (1 + np.cos(np.pi * t / 20)) / 2 for t in range(8, 12)]
    start = start_of(spec, [1, -1, 2, 0.5], control=[0.25, -1, 2, 0], own=[1, 1, -0.5, 0.125], round_index=2)
    targets = [3, -2, 5, 1]
    trained = train(start, targets, rates)
    theta, drift = np.array([1, -1, 2, 0.5]), np.array([0.25, -1, 2, 0]) - np.array([1, 1, -0.5, 0.125])
    gradients = []
    for target, rate in zip(targets, rates, strict=True):
        gradients.append(theta - target)
        theta = theta - rate * (gradients[-1] + drift)
    np.testing.assert_allclose(trained, theta, atol=1e-6)
    outcome = LOCAL_RULES[LocalRule.SCAFFOLD].finish(start, trained - np.array([1, -1, 2, 0.5], np.float32))
    assert outcome.private is not None
    expected = sum(rate * gradient for rate, gradient in zip(rates, gradients, strict=True)) / sum(rates)
    np.testing.assert_allclose(outcome.private["own_control"], expected, atol=3e-6)


def test_scaffold_control_follows_from_the_update_as_it_is_clipped() -> None:
    spec = spec_of("scaffold", steps=2, learning_rate=0.5, clip_norm=5.0)
    start = start_of(spec, [0, 0, 0, 0], control=[1, 0, 0, 0], own=[0, 2, 0, 0])
    outcome = LOCAL_RULES[LocalRule.SCAFFOLD].finish(start, np.array([30, 40, 0, 0], np.float32))
    # Clipped to (3, 4), L = 1: dc = -c - x.
    np.testing.assert_allclose(outcome.segments["control_update"], [-4, -4, 0, 0], rtol=1e-6)
    assert outcome.private is not None
    np.testing.assert_allclose(outcome.private["own_control"], [-4, -2, 0, 0], rtol=1e-6)


def test_scaffold_before_its_first_round_corrects_nothing() -> None:
    start = start_of(spec_of("scaffold"), [0.25, 1, -3, 2])
    plain = start_of(spec_of("plain"), [0.25, 1, -3, 2])
    assert train(start, [4, -1], [0.5, 0.25]).tolist() == train(plain, [4, -1], [0.5, 0.25]).tolist()


def test_scaffold_over_private_state_of_another_layout_is_refused() -> None:
    start = start_of(spec_of("scaffold"), [0, 0, 0, 0], own=[0, 0, 0])
    with pytest.raises(AdapterTensorError):
        LOCAL_RULES[LocalRule.SCAFFOLD].correction(start, parameters_at([0, 0, 0, 0]))


@pytest.mark.parametrize("rule", ["plain", "fedprox"])
def test_rules_without_private_state_leave_none_and_add_no_segment(rule: str) -> None:
    start = start_of(spec_of(rule), [0, 0, 0, 0])
    outcome = LOCAL_RULES[LocalRule(rule)].finish(start, np.ones(4, np.float32))
    assert dict(outcome.segments) == {}
    assert outcome.private is None
