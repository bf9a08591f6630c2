"""The server rule ``fedavgm``: momentum on the mean update D (Hsu et al. 2019, in the form of OpenFedLLM, KDD 2024).

v <- D in the first round, then beta1 v + (1 - beta1) D                   theta <- theta + v
"""

from __future__ import annotations

import numpy as np

from fl_protocol.folds.server_rules.rule import (
    Float32Array,
    ServerState,
    ServerStep,
    Tensors,
    blend_first_moment,
    step_in_place,
)
from fl_protocol.spec.server_spec import ServerSpec


def step_fedavgm(adapter: Tensors, mean_update: Tensors, server: ServerState, spec: ServerSpec) -> ServerStep:
    """One step. See ``ServerRule``."""

    def kernel(theta: Float32Array, delta: Float32Array, moments: tuple[Float32Array, ...], *, is_first: bool) -> None:
        (velocity,) = moments
        blend_first_moment(velocity, delta, beta1=spec.beta1, is_first=is_first)
        np.add(theta, velocity, out=delta)

    return step_in_place(adapter, mean_update, server, moments={"first_moment": 0.0}, kernel=kernel)
