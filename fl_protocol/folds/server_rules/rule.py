"""The seam of a server rule, and the walk over an adapter that all rules share. Element-wise float32, bit for bit.

Memory: the moved adapter lies over the mean update, and a new moment is the one wide vector that its rule needs; what
is computed in between is a chunk. Every operation is one numpy call on float32 arrays with float32 constants, so that
no compiler may join two of them: all parties get the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ProtocolError
from fl_protocol.spec.server_spec import ServerSpec

Float32Array = NDArray[np.float32]
Tensors = Mapping[str, Float32Array]
ServerState = Mapping[str, NDArray[Any]]

_CHUNK = 1 << 16


class ServerStateMismatchError(ProtocolError):
    """What the public state carries for the server is not what the run's rule left there."""

    code = "server-state-mismatch"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerStep:
    """The adapter and the server's state after a step."""

    adapter: dict[str, Float32Array]
    server: dict[str, NDArray[Any]]


class ServerRule(Protocol):
    """One rule; pure."""

    def __call__(self, adapter: Tensors, mean_update: Tensors, server: ServerState, spec: ServerSpec) -> ServerStep:
        """One step; adapter and mean update have the same names and shapes.

        The mean update is given up: its memory may become that of the moved adapter. Adapter and server are left as
        they are; what the server carries for others than this rule is carried on.

        Raises:
            ServerStateMismatchError: the server's state is not one that this rule left.
        """
        ...


class Kernel(Protocol):
    """What a rule does to one piece of the vector, all pieces float32 of one length."""

    def __call__(
        self, theta: Float32Array, delta: Float32Array, moments: tuple[Float32Array, ...], *, is_first: bool
    ) -> None:
        """Turn ``delta``, the mean update, into the moved ``theta``, and the moments into the next ones, in place."""
        ...


def step_in_place(
    adapter: Tensors,
    mean_update: Tensors,
    server: ServerState,
    *,
    moments: Mapping[str, float],
    kernel: Kernel,
) -> ServerStep:
    """Let ``kernel`` do its work over the mean update, piece by piece.

    Args:
        adapter: the global adapter.
        mean_update: contiguous tensors of the same names and shapes; given up.
        server: holds the tensor ``<moment>.<name>`` for each moment and tensor, or none of them before the first step.
        moments: the rule's moments in the kernel's order, each with the value that it has before the first step.
        kernel: the rule.

    Raises:
        ServerStateMismatchError: some of the moments are missing, or of another shape or dtype.
    """
    is_first = not any(key.startswith(f"{moment}.") for key in server for moment in moments)
    carried = {key: array for key, array in server.items() if not any(key.startswith(f"{m}.") for m in moments)}
    moved: dict[str, Float32Array] = {}
    for name, theta in adapter.items():
        after = tuple(
            np.full(theta.shape, np.float32(value), dtype=np.float32)
            if is_first
            else moment_of(server, moment, name, shape=theta.shape).copy()
            for moment, value in moments.items()
        )
        flat_theta, flat_delta = theta.reshape(-1), mean_update[name].reshape(-1)
        flat_moments = tuple(array.reshape(-1) for array in after)
        for start in range(0, flat_theta.size, _CHUNK):
            place = slice(start, start + _CHUNK)
            pieces = tuple(array[place] for array in flat_moments)
            kernel(flat_theta[place], flat_delta[place], pieces, is_first=is_first)
        moved[name] = mean_update[name]
        carried |= {f"{moment}.{name}": array for moment, array in zip(moments, after, strict=True)}
    return ServerStep(adapter=moved, server=carried)


def moment_of(server: ServerState, moment: str, name: str, *, shape: tuple[int, ...]) -> Float32Array:
    """One tensor of the server's state, float32 of ``shape``; shared, not to be changed.

    Raises:
        ServerStateMismatchError: it is missing, or of another shape or dtype.
    """
    array = server.get(f"{moment}.{name}")
    if array is None or array.dtype != np.float32 or array.shape != shape:
        message = "the server's state is not the one that this run's rule left"
        raise ServerStateMismatchError(message, moment=moment, tensor=name)
    return array


def move_by_quotient(
    theta: Float32Array, over: Float32Array, first: Float32Array, second: Float32Array, *, spec: ServerSpec
) -> None:
    """``over <- theta + learning_rate (first / (sqrt(second) + tau))``; five float32 operations, in place."""
    np.sqrt(second, out=over)
    np.add(over, np.float32(spec.tau), out=over)
    np.divide(first, over, out=over)
    np.multiply(over, np.float32(spec.learning_rate), out=over)
    np.add(theta, over, out=over)


def blend_first_moment(first: Float32Array, delta: Float32Array, *, beta1: float, is_first: bool) -> None:
    """``first <- beta1 first + (1 - beta1) delta``, or ``delta`` in the first step; ``delta`` is used up."""
    if is_first:
        first[...] = delta
        return
    np.multiply(first, np.float32(beta1), out=first)
    np.multiply(delta, np.float32(1.0 - beta1), out=delta)
    np.add(first, delta, out=first)
