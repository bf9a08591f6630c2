"""The learning rate over all steps of a run. Pure.

The schedule goes across rounds: a round does not start it anew, so that a run of R rounds of S steps has the learning
rates of one training of R x S steps.
"""

from __future__ import annotations

import math
from typing import assert_never

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import Schedule


def learning_rate_at(spec: RunSpec, *, round_index: int, step: int) -> float:
    """The learning rate of one optimiser step.

    With t = round_index x steps + step, T = rounds x steps and W = warmup_steps: linear warm-up (t + 1) / W while
    t < W; then, with p = (t - W) / (T - W), constant 1, linear 1 - p, or cosine (1 + cos(pi p)) / 2.

    Args:
        spec: the run.
        round_index: from 0.
        step: within the round, from 0.
    """
    local = spec.local
    t = round_index * local.steps + step
    if t < local.warmup_steps:
        return local.learning_rate * (t + 1) / local.warmup_steps
    progress = (t - local.warmup_steps) / max(1, spec.rounds * local.steps - local.warmup_steps)
    match local.schedule:
        case Schedule.CONSTANT:
            return local.learning_rate
        case Schedule.LINEAR:
            return local.learning_rate * (1 - progress)
        case Schedule.COSINE:
            return local.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        case _:
            assert_never(local.schedule)
