"""The learning rate over all steps of a run. Pure.

Most schedules go across rounds: a round does not start them anew, so that a run of R rounds of S steps has the learning
rates of one training of R x S steps. ``cosine-by-round`` is OpenFedLLM's: one rate a round.

It is protocol and not the trainer's own because a fold reads it: SCAFFOLD's control variates are updates divided by the
sum of a round's learning rates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import assert_never

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import LocalSpec, Schedule


def learning_rate_at(spec: RunSpec, *, round_index: int, step: int) -> float:
    """The learning rate of one optimiser step.

    With t = round_index x steps + step, T = rounds x steps and W = warmup_steps: linear warm-up (t + 1) / W while
    t < W; then, with p = (t - W) / (T - W), constant 1, linear 1 - p, or cosine (1 + cos(pi p)) / 2.

    ``cosine-by-round`` (OpenFedLLM, KDD 2024) is the same at all steps of a round: with p = round_index / rounds,
    min + (learning_rate - min) (1 + cos(pi p)) / 2.

    Args:
        spec: the run.
        round_index: from 0.
        step: within the round, from 0.
    """
    return _rate(spec.local, spec.rounds, round_index, step)


@lru_cache(maxsize=64)
def _sum_of_round(local: LocalSpec, rounds: int, round_index: int) -> float:
    return math.fsum(_rate(local, rounds, round_index, step) for step in range(local.steps))


def sum_of_learning_rates(spec: RunSpec, *, round_index: int) -> float:
    """The sum of the learning rates of all steps of a round, above 0. Its last bit may differ between machines."""
    return _sum_of_round(spec.local, spec.rounds, round_index)


def smallest_sum_of_learning_rates(spec: RunSpec) -> float:
    """The smallest of ``sum_of_learning_rates`` over the run's rounds.

    A rate rises during the warm-up and never after it, so that of the sums over windows of equal length the first or
    the last is the smallest.
    """
    return min(sum_of_learning_rates(spec, round_index=index) for index in (0, spec.rounds - 1))


def _rate(local: LocalSpec, rounds: int, round_index: int, step: int) -> float:
    if local.schedule is Schedule.COSINE_BY_ROUND:
        lowest = local.min_learning_rate
        return lowest + (local.learning_rate - lowest) * (1 + math.cos(math.pi * round_index / rounds)) / 2
    t = round_index * local.steps + step
    if t < local.warmup_steps:
        return local.learning_rate * (t + 1) / local.warmup_steps
    progress = (t - local.warmup_steps) / max(1, rounds * local.steps - local.warmup_steps)
    match local.schedule:
        case Schedule.CONSTANT:
            return local.learning_rate
        case Schedule.LINEAR:
            return local.learning_rate * (1 - progress)
        case Schedule.COSINE:
            return local.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        case _:
            assert_never(local.schedule)
