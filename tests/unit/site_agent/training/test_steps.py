from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from site_agent.training.collate import Example
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.local.steps import LocalSteps, TrainingSums, train_in_steps
from site_agent.training.task_half import LossSum

pytestmark = pytest.mark.training

LEARNING_RATE = 0.1


def example(value: int, n_tokens: int) -> Example:
    return Example(prompt_ids=(value,), completion_ids=(0,) * n_tokens)


class Quadratic:
    """A stand-in for a model: the loss of an example of value v and n tokens is n (w - v)^2 / 2."""

    def __init__(self, start: float = 0.0) -> None:
        self.w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        losses = [len(one.completion_ids) * (self.w - one.prompt_ids[0]) ** 2 / 2 for one in examples]
        return LossSum(loss=sum(losses[1:], losses[0]), n_units=sum(len(one.completion_ids) for one in examples))


def run(model: Quadratic, examples: Sequence[Example], **changes: object) -> tuple[TrainingSums, list[float]]:
    rule = {"batch_size": 2, "accumulation": 1, "weight_decay": 0.0, "learning_rates": (LEARNING_RATE,), **changes}
    losses: list[float] = []
    sums = train_in_steps(
        {"w": model.w},
        examples,
        rule=LocalSteps(**rule),
        train_loss=model,
        on_step=lambda done: losses.append(done.loss),
    )
    return sums, losses


def test_first_step_of_adamw_moves_by_the_learning_rate_against_the_gradient() -> None:
    # Adam's first step: m = (1-b1) g, v = (1-b2) g^2, both corrected, so w -= lr g / (|g| + eps).
    model = Quadratic()
    run(model, [example(3, 1), example(5, 1)])
    assert model.w.item() == pytest.approx(LEARNING_RATE * 4 / (4 + 1e-8), rel=1e-12)


def test_weight_decay_is_decoupled() -> None:
    model = Quadratic(start=2.0)
    run(model, [example(3, 1), example(5, 1)], weight_decay=0.5)
    assert model.w.item() == pytest.approx(2.0 * (1 - LEARNING_RATE * 0.5) + LEARNING_RATE, rel=1e-7)


def test_accumulated_step_equals_one_large_batch() -> None:
    examples = [example(value, n) for value, n in [(3, 1), (5, 7), (-2, 3), (8, 2)] * 3]
    large, small = Quadratic(), Quadratic()
    rates = (0.1, 0.05, 0.2)
    of_large, _ = run(large, examples, batch_size=4, learning_rates=rates)
    of_small, _ = run(small, examples, batch_size=1, accumulation=4, learning_rates=rates)
    assert small.w.item() == pytest.approx(large.w.item(), rel=1e-12)
    assert of_small.n_tokens == of_large.n_tokens == 39
    assert of_small.loss_sum == pytest.approx(of_large.loss_sum, rel=1e-12)


def test_gradient_is_that_of_the_mean_over_all_tokens_of_the_step() -> None:
    # 7 tokens pull to 1 and one token to -1: a mean over examples would not move at all.
    model = Quadratic()
    seen: list[float] = []
    model.w.register_hook(lambda grad: seen.append(float(grad)))
    run(model, [example(1, 7), example(-1, 1)], batch_size=1, accumulation=2)
    assert sum(seen) == pytest.approx(-(7 - 1) / 8)


def test_sums_are_the_losses_before_each_update_and_their_tokens() -> None:
    model = Quadratic()
    sums, losses = run(model, [example(3, 1), example(5, 3), example(1, 2), example(1, 2)], learning_rates=(0.1, 0.1))
    assert sums.n_tokens == 8
    assert losses[0] == pytest.approx((9 / 2 + 3 * 25 / 2) / 4)
    assert losses[1] == pytest.approx((0.1 - 1) ** 2 / 2, rel=1e-6)
    assert sums.loss_sum == pytest.approx(losses[0] * 4 + losses[1] * 4)


def test_optimiser_starts_each_round_with_empty_moments() -> None:
    model = Quadratic()
    run(model, [example(100, 1), example(100, 1)] * 5, learning_rates=(LEARNING_RATE,) * 5)
    before = model.w.item()
    run(model, [example(-100, 1), example(-100, 1)])
    # With moments of the round before, the step would still go up.
    assert model.w.item() == pytest.approx(before - LEARNING_RATE, rel=1e-6)


def test_loss_that_is_not_finite_names_its_step() -> None:
    model = Quadratic()
    with pytest.raises(LossNotFiniteError) as caught:
        run(model, [example(1, 1)] * 4, learning_rates=(math.inf, 0.1))
    assert caught.value.facts == {"step": 2}
