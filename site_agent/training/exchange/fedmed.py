"""The site half of ``fedmed``: how far each layer has moved at this site, and whether this round is attentive.

Raw figures of one site, as all of this room: the agent turns them into bounded factors, and only sums leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.folds.fedmed import IS_ATTENTIVE, LAYER_DISTANCE, attention_of, is_attentive
from fl_protocol.spec.attention_spec import Distance
from site_agent.training.local.rule import RoundStart

Float64Array = NDArray[np.float64]


def attention_segments(start: RoundStart, local_adapter: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """layer_distance, float64 (L,), in the layout's order, and is_attentive, int64 (1,).

    Raises:
        AdapterTensorError: an adapter is not of the layout.
    """
    start.layout.check(local_adapter)
    measure = DISTANCES[attention_of(start.spec).distance]
    distances = [
        measure(
            start.state.adapter[tensor.name].astype(np.float64).reshape(-1),
            np.asarray(local_adapter[tensor.name]).astype(np.float64).reshape(-1),
        )
        for tensor in start.layout.tensors
    ]
    return {
        LAYER_DISTANCE: np.array(distances, dtype=np.float64),
        IS_ATTENTIVE: np.array([int(is_attentive(start.state, start.spec))], dtype=np.int64),
    }


def l2_distance(before: Float64Array, after: Float64Array) -> float:
    """The Euclidean norm of the difference."""
    return float(np.sqrt(np.sum((after - before) ** 2)))


def jensen_shannon(before: Float64Array, after: Float64Array) -> float:
    """The Jensen-Shannon divergence of softmax(before) and softmax(after), in nats: symmetric, 0 .. ln 2.

    JS(p, q) = (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 (Lin, IEEE Trans. Inf. Theory 1991).
    """
    p, q = _softmax(before), _softmax(after)
    middle = (p + q) / 2
    # Rounding may leave a trace below zero where the two are equal.
    return max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _softmax(values: Float64Array) -> Float64Array:
    raised = np.exp(values - values.max())
    total: Float64Array = raised / raised.sum()
    return total


def _relative_entropy(p: Float64Array, q: Float64Array) -> float:
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


DISTANCES: Mapping[Distance, Callable[[Float64Array, Float64Array], float]] = {
    Distance.L2: l2_distance,
    Distance.JS: jensen_shannon,
}
"""Every distance of this version, by the name in ``aggregation.attention.distance``."""
