"""The server rule ``fedadam`` (Reddi et al., ICLR 2021, in the form of OpenFedLLM, KDD 2024).

    m <- D in the first round, then beta1 m + (1 - beta1) D
    s <- beta2 s + (1 - beta2) m^2, s = tau^2 before the first round          theta <- theta + eta m / (sqrt(s) + tau)

OpenFedLLM squares the moment m and not D, and corrects no bias; the paper's Algorithm 2 squares D. We follow it.
"""

from __future__ import annotations

import numpy as np

from fl_protocol.folds.server_rules.rule import (
    Float32Array,
    ServerState,
    ServerStep,
    Tensors,
    blend_first_moment,
    move_by_quotient,
    step_in_place,
)
from fl_protocol.spec.server_spec import ServerSpec


def step_fedadam(adapter: Tensors, mean_update: Tensors, server: ServerState, spec: ServerSpec) -> ServerStep:
    """One step. See ``ServerRule``."""

    def kernel(theta: Float32Array, delta: Float32Array, moments: tuple[Float32Array, ...], *, is_first: bool) -> None:
        first, second = moments
        blend_first_moment(first, delta, beta1=spec.beta1, is_first=is_first)
        np.multiply(first, first, out=delta)
        np.multiply(delta, np.float32(1.0 - spec.beta2), out=delta)
        np.multiply(second, np.float32(spec.beta2), out=second)
        np.add(second, delta, out=second)
        move_by_quotient(theta, delta, first, second, spec=spec)

    before = {"first_moment": 0.0, "second_moment": spec.tau**2}
    return step_in_place(adapter, mean_update, server, moments=before, kernel=kernel)
