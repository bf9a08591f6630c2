"""A sum of ring vectors back in real units, once its masks are off; a sum that no honest cohort can have is refused.

Decoding divides the integer sum by the scale that it was encoded with (``fixed_point``, which proves the bounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.errors import ImplausibleSumError, SegmentShapeError, SumSpentError
from fl_protocol.codec.fixed_point import (
    CACHED_ELEMENTS,
    AnyArray,
    FixedPointScale,
    Float32Array,
    Float64Array,
    fixed_point_scale,
)
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind


class UpdateSum:
    """The sum of an update segment, float64 shape (n,), decoded where it is looked at: whole it were twice the sum.

    Invariant: every integer was checked against what the counted sites may add up to.
    """

    __slots__ = ("_high", "_is_given_up", "_is_spent", "_low", "_scale", "_signed")

    def __init__(
        self,
        ring: NDArray[np.uint32],
        segment: Segment,
        *,
        fixed: FixedPointScale,
        n_sites: int,
        is_given_up: bool = False,
    ) -> None:
        """Check the integers; the array is shared, and with ``is_given_up`` it is ours to write over.

        Raises:
            ImplausibleSumError: a sum is outside ``n_sites`` times what one site may send.
        """
        self._is_given_up = is_given_up
        self._is_spent = False
        self._signed = ring.view(np.int32)
        self._scale = np.float64(fixed.scale)
        limit = n_sites * fixed.q_max
        low, high = (int(self._signed.min()), int(self._signed.max())) if self._signed.size else (0, 0)
        if not (low >= -limit and high <= limit):
            raise ImplausibleSumError("a sum is outside what the counted sites may add up to", segment=segment.name)
        self._low, self._high = float(low / self._scale), float(high / self._scale)

    @property
    def shape(self) -> tuple[int]:
        """(n,)."""
        return (self._signed.size,)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._signed.size

    def min(self) -> float:
        """The smallest element; 0.0 where there is none."""
        return self._low

    def max(self) -> float:
        """The largest element; 0.0 where there is none."""
        return self._high

    def __getitem__(self, place: slice) -> Float64Array:
        """A piece of it, decoded: an exact integer divided once in float64. Raises SumSpentError."""
        self._check_unspent()
        piece: Float64Array = np.divide(self._signed[place], self._scale, dtype=np.float64)
        return piece

    def scaled(self, factor: float) -> Float32Array:
        """``float32(element * factor)`` for every element. See ``scaled_in_pieces``."""
        return self.scaled_in_pieces([(self.size, factor)])

    def scaled_in_pieces(self, pieces: Sequence[tuple[int, float]]) -> Float32Array:
        """``float32(element * factor)`` for every element, float32 shape (n,), the product taken in float64.

        Beyond the result, memory is one chunk in float64. Where the sum was given up the result lies over its words,
        and nothing but ``shape``, ``size``, ``min`` and ``max`` can be asked of it any more.

        Args:
            pieces: how many elements have which factor, from the first on; together n elements.

        Raises:
            SumSpentError: the sum was given up and used up.
        """
        self._check_unspent()
        signed = self._signed
        self._is_spent = self._is_given_up
        result: Float32Array = signed.view(np.float32) if self._is_given_up else np.empty(self.shape, dtype=np.float32)
        wide = np.empty(min(CACHED_ELEMENTS, self.size), dtype=np.float64)
        offset = 0
        for n_elements, factor in pieces:
            end = offset + n_elements
            for start in range(offset, end, CACHED_ELEMENTS):
                stop = min(start + CACHED_ELEMENTS, end)
                part = wide[: stop - start]
                # Invariant: every word of the chunk is read before one of them is written over.
                part[...] = signed[start:stop]
                np.divide(part, self._scale, out=part)
                np.multiply(part, factor, out=part)
                result[start:stop] = part
            offset = end
        return result

    def _check_unspent(self) -> None:
        if self._is_spent:
            raise SumSpentError("the memory of this sum was given up, and holds something else now")


SumValues = AnyArray | UpdateSum


def decode_sums(vector: RingVector, layout: PayloadLayout, *, n_sites: int | None = None) -> dict[str, AnyArray]:
    """The sums of the segments in real units, all of them decoded. See ``read_sums``."""
    return {
        name: values[:] if isinstance(values, UpdateSum) else values
        for name, values in read_sums(vector, layout, n_sites=n_sites).items()
    }


def read_sums(
    vector: RingVector, layout: PayloadLayout, *, n_sites: int | None = None, is_given_up: bool = False
) -> dict[str, SumValues]:
    """The sums of the segments in real units; updates share the vector's memory.

    Args:
        vector: the sum of ring vectors, unmasked.
        layout: what was agreed for this round.
        n_sites: how many sites were counted; None: as many as the layout admits.
        is_given_up: the caller has no use for the vector afterwards: what is computed from an update may lie over it.

    Returns:
        update -> UpdateSum (n,), count -> int64 (n,), scalar -> float64 (n,). Deterministic bit for bit: an exact
        integer divided (update) or multiplied (scalar) once in float64.

    Raises:
        ImplausibleSumError: a sum is outside ``n_sites`` times what one site may send.
        SegmentShapeError: the vector is not of this layout.
    """
    if vector.ring32.shape != (layout.n_ring32,) or vector.ring64.shape != (layout.n_ring64,):
        raise SegmentShapeError("the vector is not of this layout")
    counted = layout.max_sites if n_sites is None else n_sites
    if not 1 <= counted <= layout.max_sites:
        raise ImplausibleSumError("a sum is over 1 to max_sites sites", n_sites=counted, max_sites=layout.max_sites)
    sums: dict[str, SumValues] = {}
    for segment in layout.segments:
        place = layout.slice_of(segment.name)
        match segment.kind:
            case SegmentKind.UPDATE:
                fixed = fixed_point_scale(segment, layout.max_sites)
                sums[segment.name] = UpdateSum(
                    vector.ring32[place], segment, fixed=fixed, n_sites=counted, is_given_up=is_given_up
                )
            case SegmentKind.COUNT:
                signed = vector.ring64[place].view(np.int64)
                _check_sum(signed, segment, low=0, high=counted * int(segment.bound))
                sums[segment.name] = signed.copy()
            case SegmentKind.SCALAR:
                signed = vector.ring64[place].view(np.int64)
                limit = counted * segment.max_integer(layout.max_sites)
                _check_sum(signed, segment, low=-limit, high=limit)
                sums[segment.name] = signed.astype(np.float64) * np.float64(segment.resolution)
            case _:
                assert_never(segment.kind)
    return sums


def _check_sum(signed: NDArray[np.int32] | NDArray[np.int64], segment: Segment, *, low: int, high: int) -> None:
    if signed.size and not (int(signed.min()) >= low and int(signed.max()) <= high):
        raise ImplausibleSumError("a sum is outside what the counted sites may add up to", segment=segment.name)
