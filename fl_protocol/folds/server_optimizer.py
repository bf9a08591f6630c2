"""How the mean update is applied to the global adapter: one row of the table a rule. Element-wise float32, bit for bit.

FedOpt (Reddi et al., ICLR 2021) sees the mean update as a pseudo-gradient; fedavg (McMahan et al., AISTATS 2017) is its
plain case. A rule with momentum keeps its moments in ``server``, which is part of the public state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.float32]]
ServerState = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerStep:
    """The adapter and the server's state after a step."""

    adapter: dict[str, NDArray[np.float32]]
    server: dict[str, NDArray[Any]]


class ServerOptimizer(Protocol):
    """One rule; pure."""

    def __call__(self, adapter: Tensors, mean_update: Tensors, server: ServerState) -> ServerStep:
        """One step; adapter and mean update have the same names and shapes.

        The mean update is given up: its memory may become that of the moved adapter. The adapter is left as it is.
        """
        ...


def step_fedavg(adapter: Tensors, mean_update: Tensors, server: ServerState) -> ServerStep:
    """``theta <- theta + mean update``, one float32 addition an element, over the mean update."""
    moved = {
        name: np.add(theta, mean_update[name], out=mean_update[name], dtype=np.float32)
        for name, theta in adapter.items()
    }
    return ServerStep(adapter=moved, server=dict(server))


SERVER_OPTIMIZERS: dict[str, ServerOptimizer] = {"fedavg": step_fedavg}
"""Every rule of this version, by the name in ``aggregation.server.optimizer``."""
