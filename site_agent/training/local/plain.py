"""The local rule ``plain``: AdamW on the adapter, a fixed number of optimiser steps.

The optimiser starts each round with empty moments (as OpenFedLLM does): they belong to this site's own path, which the
round's average leaves. The learning rate goes on across rounds. Knows neither records nor the secure sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from site_agent.training.collate import Example
from site_agent.training.completion_loss import CompletionLoss
from site_agent.training.errors import LossNotFiniteError


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRule:
    """How to step.

    Attributes:
        batch_size: examples of one forward pass.
        accumulation: forward passes of one optimiser step.
        learning_rates: one an optimiser step.
    """

    batch_size: int
    accumulation: int
    weight_decay: float
    learning_rates: tuple[float, ...]

    @property
    def n_examples(self) -> int:
        """How many examples the round uses."""
        return len(self.learning_rates) * self.batch_size * self.accumulation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSums:
    """Loss and completion tokens summed over all training steps; each step's loss is that before its update."""

    loss_sum: float
    n_tokens: int


StepListener = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its mean loss a token."""


def train_plain(
    parameters: Sequence[torch.nn.Parameter],
    examples: Sequence[Example],
    *,
    rule: PlainRule,
    completion_loss: CompletionLoss,
    on_step: StepListener,
) -> TrainingSums:
    """Train in place.

    The gradient of a step is that of its summed loss over all its accumulated batches, divided by the number of
    completion tokens among all of them: an accumulated step equals one large batch.

    Args:
        parameters: the adapter's, all of which are trained.
        examples: exactly ``rule.n_examples``, in the order in which they are used.
        rule: how to step.
        completion_loss: computes the loss of a batch on the model that has ``parameters``.
        on_step: hears of each step.

    Raises:
        LossNotFiniteError: a step's loss is NaN or infinite; the parameters are then of no use.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rule.learning_rates[0], weight_decay=rule.weight_decay)
    per_step = rule.batch_size * rule.accumulation
    loss_sum, n_tokens = 0.0, 0
    for step, learning_rate in enumerate(rule.learning_rates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        of_step = examples[step * per_step : (step + 1) * per_step]
        step_tokens = sum(len(example.completion_ids) for example in of_step)
        step_loss = 0.0
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, per_step, rule.batch_size):
            batch_loss = completion_loss(of_step[start : start + rule.batch_size]).loss
            (batch_loss / step_tokens).backward()
            step_loss += float(batch_loss.detach())
        if not math.isfinite(step_loss):
            raise LossNotFiniteError("the training loss is not finite", step=step + 1)
        optimizer.step()
        loss_sum += step_loss
        n_tokens += step_tokens
        on_step(step + 1, step_loss / step_tokens)
    return TrainingSums(loss_sum=loss_sum, n_tokens=n_tokens)
