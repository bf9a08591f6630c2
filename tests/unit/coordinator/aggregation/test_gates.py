from __future__ import annotations

import numpy as np
import pytest

from coordinator.aggregation.gates import GateReason, Implausible, Plausible, judge_sum
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind

LAYOUT = PayloadLayout(
    segments=(
        Segment(name="update", kind=SegmentKind.UPDATE, length=4, bound=1.0),
        Segment(name="weight", kind=SegmentKind.COUNT, length=1, bound=100.0),
        Segment(name="loss", kind=SegmentKind.SCALAR, length=1, bound=8.0, resolution=0.5),
    ),
    max_sites=10,
)
Q_MAX = (2**31 - 1) // 10


def total(update: int = 0, weight: int = 0, loss: int = 0) -> RingVector:
    vector = RingVector.zeros(4, 2)
    vector.ring32.view(np.int32)[2] = update
    vector.ring64.view(np.int64)[:] = (weight, loss)
    return vector


@pytest.mark.parametrize(
    "values",
    [
        {"update": 3 * Q_MAX},
        {"update": -3 * Q_MAX},
        {"weight": 300},
        {"loss": 48},
        {"loss": -48},
    ],
)
def test_sum_on_its_bound_passes(values: dict[str, int]) -> None:
    assert judge_sum(total(**values), LAYOUT, n_counted=3) == Plausible()


@pytest.mark.parametrize(
    ("values", "segment"),
    [
        ({"update": 3 * Q_MAX + 1}, "update"),
        ({"update": -3 * Q_MAX - 1}, "update"),
        ({"weight": 301}, "weight"),
        ({"weight": -1}, "weight"),
        ({"loss": 49}, "loss"),
        ({"loss": -49}, "loss"),
    ],
)
def test_sum_beyond_its_bound_fails_and_names_the_segment(values: dict[str, int], segment: str) -> None:
    found = judge_sum(total(**values), LAYOUT, n_counted=3)
    assert found == Implausible(reason=GateReason.OUT_OF_BOUND, segment=segment)


def test_sum_of_another_layout_fails() -> None:
    assert isinstance(judge_sum(RingVector.zeros(5, 2), LAYOUT, n_counted=3), Implausible)
