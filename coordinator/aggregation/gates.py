"""Is this a sum that the counted sites can have produced?

If not, a site sent nonsense or a mask is wrong: nobody learns from it, and the round ends. Who it was cannot be told
from a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.spec.payload_layout import PayloadLayout, Ring, SegmentKind

_CHUNK = 1 << 18


class GateReason(StrEnum):
    """Which gate a sum failed."""

    OUT_OF_BOUND = "out-of-bound"
    LAYOUT_DIFFERS = "layout-differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plausible:
    """Every gate was passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implausible:
    """A gate was failed, and by which segment; never by which value."""

    reason: GateReason
    segment: str


def judge_sum(vector: RingVector, layout: PayloadLayout, *, n_counted: int) -> Plausible | Implausible:
    """Check every coordinate of an unmasked sum against what ``n_counted`` sites may add up to.

    An update's or scalar's coordinate z, read as signed, has |z| <= n_counted * q_max; a count has 0 <= z <= n_counted
    * bound. Integers of a ring are always finite; what they decode to is, since the layout's scales are.

    Args:
        vector: the sum, uint32 shape (n32,) and uint64 shape (n64,).
        layout: what was agreed for the round.
        n_counted: how many vectors are in the sum, at least 1.
    """
    if vector.ring32.size != layout.n_ring32 or vector.ring64.size != layout.n_ring64:
        return Implausible(reason=GateReason.LAYOUT_DIFFERS, segment="")
    for segment in layout.segments:
        largest = n_counted * segment.max_integer(layout.max_sites)
        smallest = 0 if segment.kind is SegmentKind.COUNT else -largest
        place = layout.slice_of(segment.name)
        for start in range(place.start, place.stop, _CHUNK):
            stop = min(start + _CHUNK, place.stop)
            if segment.ring is Ring.RING32:
                low, high = _extremes32(vector, start, stop)
            else:
                low, high = _extremes64(vector, start, stop)
            if low < smallest or high > largest:
                return Implausible(reason=GateReason.OUT_OF_BOUND, segment=segment.name)
    return Plausible()


def _extremes32(vector: RingVector, start: int, stop: int) -> tuple[int, int]:
    signed = vector.ring32[start:stop].view(np.int32)
    return int(signed.min()), int(signed.max())


def _extremes64(vector: RingVector, start: int, stop: int) -> tuple[int, int]:
    signed = vector.ring64[start:stop].view(np.int64)
    return int(signed.min()), int(signed.max())
