"""The server rule ``fedadagrad`` (Reddi et al., ICLR 2021, as OpenFedLLM has it: without momentum).

s <- s + D^2, s = tau^2 before the first round                            theta <- theta + eta D / (sqrt(s) + tau)
"""

from __future__ import annotations

import numpy as np

from fl_protocol.folds.server_rules.rule import (
    Float32Array,
    ServerState,
    ServerStep,
    Tensors,
    move_by_quotient,
    step_in_place,
)
from fl_protocol.spec.server_spec import ServerSpec


def step_fedadagrad(adapter: Tensors, mean_update: Tensors, server: ServerState, spec: ServerSpec) -> ServerStep:
    """One step. See ``ServerRule``."""

    def kernel(
        theta: Float32Array,
        delta: Float32Array,
        moments: tuple[Float32Array, ...],
        *,
        is_first: bool,  # noqa: ARG001 - the first round is like every other
    ) -> None:
        (second,) = moments
        np.add(second, delta * delta, out=second)
        move_by_quotient(theta, delta, delta.copy(), second, spec=spec)

    return step_in_place(adapter, mean_update, server, moments={"second_moment": spec.tau**2}, kernel=kernel)
