"""The server rule ``fedavg`` (McMahan et al., AISTATS 2017, Algorithm 1).

theta <- theta + D                                                        D: the mean update
"""

from __future__ import annotations

import numpy as np

from fl_protocol.folds.server_rules.rule import Float32Array, ServerState, ServerStep, Tensors, step_in_place
from fl_protocol.spec.server_spec import ServerSpec


def step_fedavg(adapter: Tensors, mean_update: Tensors, server: ServerState, spec: ServerSpec) -> ServerStep:  # noqa: ARG001 - it has no parameter
    """One step. See ``ServerRule``."""
    return step_in_place(adapter, mean_update, server, moments={}, kernel=_add)


def _add(theta: Float32Array, delta: Float32Array, moments: tuple[Float32Array, ...], *, is_first: bool) -> None:  # noqa: ARG001 - it has no moment
    np.add(theta, delta, out=delta)
