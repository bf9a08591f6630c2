"""The steps of a round, which all local rules share: a fixed number of optimiser steps on the adapter.

A rule changes the gradient between its computation and the optimiser's step (``correct``), never the weights behind the
optimiser's back: what it adds goes through the same learning rate as the loss does.

The optimiser starts each round with empty moments (as OpenFedLLM does): they belong to this site's own path, which the
round's average leaves. The learning rate goes on across rounds. Knows neither records nor the secure sum.

Between two steps the whole of it can be taken down as a ``StepsState`` and taken up in another process, which then
computes the same numbers to the last bit: the parameters, both moments, the sums so far, and the generators from which
dropout draws. What a rule adds to the gradient follows from the parameters and from the round's start, so that it needs
no place in the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from numpy.typing import NDArray

from fl_protocol.spec.run_spec_parts import LocalOptimizer
from site_agent.training.device import generator_states, set_generator_states
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.task_half import LossSum, TaskExample

_ADAPTER = "adapter/"
_GENERATOR = "generator/"
_MOMENTS: Mapping[LocalOptimizer, tuple[str, ...]] = {
    LocalOptimizer.ADAMW: ("step", "exp_avg", "exp_avg_sq"),
    LocalOptimizer.SGD: (),
}
"""What an optimiser keeps for each parameter from step to step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps:
    """How to step.

    Attributes:
        batch_size: examples of one forward pass.
        accumulation: forward passes of one optimiser step.
        learning_rates: one an optimiser step.
        optimizer: AdamW, or plain SGD without momentum.
    """

    batch_size: int
    accumulation: int
    weight_decay: float
    learning_rates: tuple[float, ...]
    optimizer: LocalOptimizer = LocalOptimizer.ADAMW

    @property
    def n_per_step(self) -> int:
        """How many examples one optimiser step uses."""
        return self.batch_size * self.accumulation

    @property
    def n_examples(self) -> int:
        """How many examples the round uses."""
        return len(self.learning_rates) * self.n_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSums:
    """Loss and its units (completion tokens, say) over all training steps; a step's loss is that before its update."""

    loss_sum: float
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepsState:
    """Training between two steps. Safety: its tensors are the plain adapter of this site.

    Attributes:
        step: optimiser steps done, at least 1.
        sums: over these steps.
        tensors: parameters, moments and generator states, by name.
    """

    step: int
    sums: TrainingSums
    tensors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepDone:
    """A step that was done.

    Attributes:
        step: its number, from 1.
        loss: its mean loss a token.
        capture: makes a copy of the whole state after it; only valid until the listener returns.
    """

    step: int
    loss: float
    capture: Callable[[], StepsState]


def train_in_steps(
    parameters: Mapping[str, torch.nn.Parameter],
    examples: Sequence[TaskExample],
    *,
    rule: LocalSteps,
    train_loss: Callable[[Sequence[Any]], LossSum],
    on_step: Callable[[StepDone], None],
    on_batch: Callable[[], None] = lambda: None,
    correct: Callable[[], None] = lambda: None,
    resumed: StepsState | None = None,
) -> TrainingSums:
    """Train in place.

    The gradient of a step is that of its summed loss over all its accumulated batches, divided by the number of units
    (completion tokens, say) among all of them: an accumulated step equals one large batch.

    Args:
        parameters: the adapter's, all of which are trained.
        examples: exactly ``rule.n_examples``, in the order in which they are used.
        rule: how to step.
        train_loss: computes the summed loss of a batch on the model that has ``parameters``.
        on_step: hears of each step.
        on_batch: hears of each forward and backward pass.
        correct: changes the parameters' gradients in place, before each step of the optimiser.
        resumed: where an earlier process was with the same arguments; None starts from the beginning.

    Raises:
        LossNotFiniteError: a step's loss is NaN or infinite; the parameters are then of no use.
    """
    names = tuple(parameters)
    optimizer = _optimiser([parameters[name] for name in names], rule)
    loss_sum, n_tokens, first = 0.0, 0, 0
    if resumed is not None:
        _take_up(resumed, parameters, optimizer, moments=_MOMENTS[rule.optimizer])
        loss_sum, n_tokens, first = resumed.sums.loss_sum, resumed.sums.n_tokens, resumed.step
    for step in range(first, len(rule.learning_rates)):
        for group in optimizer.param_groups:
            group["lr"] = rule.learning_rates[step]
        of_step = examples[step * rule.n_per_step : (step + 1) * rule.n_per_step]
        step_tokens = sum(example.n_units for example in of_step)
        step_loss = 0.0
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, rule.n_per_step, rule.batch_size):
            batch_loss = train_loss(of_step[start : start + rule.batch_size]).loss
            (batch_loss / step_tokens).backward()
            step_loss += float(batch_loss.detach())
            on_batch()
        if not math.isfinite(step_loss):
            raise LossNotFiniteError("the training loss is not finite", step=step + 1)
        correct()
        optimizer.step()
        loss_sum += step_loss
        n_tokens += step_tokens
        sums = TrainingSums(loss_sum=loss_sum, n_tokens=n_tokens)
        capture = _capturing(step + 1, sums, parameters, optimizer, moments=_MOMENTS[rule.optimizer])
        on_step(StepDone(step=step + 1, loss=step_loss / step_tokens, capture=capture))
    return TrainingSums(loss_sum=loss_sum, n_tokens=n_tokens)


def _optimiser(parameters: list[torch.nn.Parameter], rule: LocalSteps) -> torch.optim.Optimizer:
    match rule.optimizer:
        case LocalOptimizer.ADAMW:
            return torch.optim.AdamW(parameters, lr=rule.learning_rates[0], weight_decay=rule.weight_decay)
        case LocalOptimizer.SGD:
            return torch.optim.SGD(parameters, lr=rule.learning_rates[0], weight_decay=rule.weight_decay)
        case _:
            assert_never(rule.optimizer)


def _capturing(
    step: int,
    sums: TrainingSums,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    moments: tuple[str, ...],
) -> Callable[[], StepsState]:
    def capture() -> StepsState:
        tensors = {_ADAPTER + name: _copy(parameter) for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            tensors |= {f"{part}/{name}": _copy(optimizer.state[parameter][part]) for part in moments}
        tensors |= {_GENERATOR + device: _copy(state) for device, state in generator_states().items()}
        return StepsState(step=step, sums=sums, tensors=tensors)

    return capture


def _take_up(
    state: StepsState,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    moments: tuple[str, ...],
) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(state.tensors[_ADAPTER + name]))
    # Cloned, so that the moments lie in torch's own memory as those of an optimiser that was never interrupted do.
    kept = {
        number: {part: torch.from_numpy(state.tensors[f"{part}/{name}"]).clone() for part in moments}
        for number, name in enumerate(parameters)
    }
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
    set_generator_states(
        {
            name.removeprefix(_GENERATOR): torch.from_numpy(tensor).clone()
            for name, tensor in state.tensors.items()
            if name.startswith(_GENERATOR)
        }
    )


def _copy(tensor: torch.Tensor) -> NDArray[Any]:
    copied: NDArray[Any] = tensor.detach().to(device="cpu", copy=True).numpy()
    return copied
