"""Real numbers as integers modulo 2**32 or 2**64, so that their sum can be taken under masks (back: ``sums``).

What may not happen here: a value that is clamped, wrapped or rounded without its bound being stated. A site calls
``clipping.clip_l2`` on purpose, once; after that everything that does not fit raises. Knows no mask and no algorithm.

**ring32 (update), encoding of one float32 x with |x| <= bound**, all in float32, in this order:

    s = scale (one float32 constant of the segment)      p = x * s      q = rint(p), ties to even      int32, as uint32

**No sum of max_sites such q wraps.** The layout proves max_sites * q_max <= 2**31 - 1. Let b32 be the largest float32
that is not above ``bound``. Every admitted x has |x| <= b32, because x is itself a float32. Multiplication by s > 0,
rounded to nearest, is monotone, and so is rint; hence |q| <= rint(fl(b32 * s)) =: q_top. ``fixed_point_scale`` takes
the largest s not above q_max / bound (exact fractions), computes q_top in float32 as the kernel does, lowers s by one
float32 while q_top > q_max, and compares as Python integers. So |sum q| <= max_sites * q_max <= 2**31 - 1.

**What is lost.** fl(x * s) differs from x * s by at most |x| s 2**-24, rint by at most 1/2. Decoding divides the
integer sum by the same s in float64. So one site contributes at most ``step / 2 + |x| 2**-24`` of error, step = 1 / s
(``quantisation_step``), and n sites at most ``n (step / 2 + bound 2**-24)`` (``sum_error_bound``).

**ring64.** A count is an int64 in 0 .. bound, exact. A scalar is a float64 with |v| <= bound, sent as
round-half-even(v / resolution), computed with exact fractions; one site's error is at most resolution / 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.errors import (
    ClipExceededError,
    CodecError,
    MissingSegmentError,
    NonFiniteUpdateError,
    SegmentShapeError,
)
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.spec.payload_layout import CapacityError, PayloadLayout, Segment, SegmentKind

AnyArray = NDArray[Any]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

CACHED_ELEMENTS = 1 << 16
"""Elements worked on at a time: 256 KiB of float32, which stays in a core's cache."""

_RELATIVE_ROUNDING = 2.0**-24
"""The largest relative error of one float32 rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPointScale:
    """How a ring32 segment is scaled.

    Invariant: for every float32 x with |x| <= bound, |rint(fl(x * scale))| <= q_max, and max_sites * q_max < 2**31.
    """

    scale: np.float32
    q_max: int


def fixed_point_scale(segment: Segment, max_sites: int) -> FixedPointScale:
    """Choose and prove the scale of a ring32 segment (the proof is in the module's docstring).

    Raises:
        CapacityError: no normal float32 scale exists for this bound.
    """
    q_max = segment.max_integer(max_sites)
    top = _float32_not_above(Fraction(segment.bound))
    scale = _float32_not_above(Fraction(q_max) / Fraction(segment.bound))
    smallest = np.finfo(np.float32).tiny
    if top < smallest or scale < smallest:
        raise CapacityError("a bound or its scale is no normal float32", segment=segment.name, bound=segment.bound)
    while int(np.rint(np.multiply(top, scale, dtype=np.float32))) > q_max:
        scale = np.nextafter(scale, np.float32(0), dtype=np.float32)
    return FixedPointScale(scale=scale, q_max=q_max)


def _float32_not_above(value: Fraction) -> np.float32:
    """The largest finite float32 that is not above ``value`` (>= 0)."""
    largest = np.finfo(np.float32).max
    if value >= Fraction(float(largest)):
        return np.float32(largest)
    candidate = np.float32(float(value))
    if not np.isfinite(candidate) or Fraction(float(candidate)) > value:
        candidate = np.nextafter(candidate, np.float32(0), dtype=np.float32)
    return candidate


def quantisation_step(layout: PayloadLayout, name: str) -> float:
    """The real value of one integer step of a segment: 1 / scale, resolution, or 1 for a count."""
    segment = layout.segment(name)
    match segment.kind:
        case SegmentKind.UPDATE:
            return 1.0 / float(fixed_point_scale(segment, layout.max_sites).scale)
        case SegmentKind.SCALAR:
            return segment.resolution
        case SegmentKind.COUNT:
            return 1.0
        case _:
            assert_never(segment.kind)


def sum_error_bound(layout: PayloadLayout, name: str, n_sites: int) -> float:
    """How far a decoded sum of ``n_sites`` may lie from the sum of the values given to ``encode_payload``, at most."""
    segment = layout.segment(name)
    step = quantisation_step(layout, name)
    match segment.kind:
        case SegmentKind.UPDATE:
            # The last factor covers the one float64 division of decoding.
            return n_sites * (step / 2 + segment.bound * _RELATIVE_ROUNDING) * (1 + 2.0**-50)
        case SegmentKind.SCALAR:
            return n_sites * (step / 2 + segment.bound * 2.0**-52)
        case SegmentKind.COUNT:
            return 0.0
        case _:
            assert_never(segment.kind)


def encode_payload(
    values: Mapping[str, AnyArray], layout: PayloadLayout, *, out: RingVector | None = None
) -> RingVector:
    """Encode one site's segments into the ring vector of ``layout``; extra memory is one 256 KiB chunk.

    Args:
        values: exactly the layout's names; update float32, count int64, scalar float64; each shape (segment.length,).
        layout: what was agreed for this round.
        out: where to write; a new vector where None.

    Returns:
        The ring vector; a sum of ``layout.max_sites`` of them cannot wrap.

    Raises:
        UnknownSegmentError, MissingSegmentError: the names are not those of the layout.
        SegmentShapeError: a shape or a dtype is not the declared one.
        NonFiniteUpdateError: a value is NaN or infinite.
        ClipExceededError: a value is over its bound.
    """
    for name in values:
        layout.segment(name)
    if out is None:
        out = RingVector.zeros(layout.n_ring32, layout.n_ring64)
    elif out.ring32.shape != (layout.n_ring32,) or out.ring64.shape != (layout.n_ring64,):
        raise SegmentShapeError("the vector to write into is not of this layout")
    for segment in layout.segments:
        if segment.name not in values:
            raise MissingSegmentError("the payload lacks a segment", segment=segment.name)
        array = values[segment.name]
        place = layout.slice_of(segment.name)
        match segment.kind:
            case SegmentKind.UPDATE:
                _check_array(array, segment, np.dtype(np.float32))
                _encode_update(array, segment, max_sites=layout.max_sites, out=out.ring32[place])
            case SegmentKind.COUNT:
                _check_array(array, segment, np.dtype(np.int64))
                _encode_count(array, segment, out=out.ring64[place])
            case SegmentKind.SCALAR:
                _check_array(array, segment, np.dtype(np.float64))
                _encode_scalar(array, segment, out=out.ring64[place])
            case _:
                assert_never(segment.kind)
    return out


def _check_array(array: AnyArray, segment: Segment, dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype:
        message = "a segment's dtype is not the declared one"
        raise SegmentShapeError(message, segment=segment.name, expected=str(dtype), found=str(array.dtype))
    if array.shape != (segment.length,):
        message = "a segment's shape is not the declared one"
        raise SegmentShapeError(message, segment=segment.name, expected=str((segment.length,)), found=str(array.shape))


def _encode_update(values: Float32Array, segment: Segment, *, max_sites: int, out: NDArray[np.uint32]) -> None:
    scale = fixed_point_scale(segment, max_sites).scale
    signed = out.view(np.int32)
    scratch = np.empty(min(CACHED_ELEMENTS, values.size), dtype=np.float32)
    bound = segment.bound
    for start in range(0, values.size, CACHED_ELEMENTS):
        part = values[start : start + CACHED_ELEMENTS]
        product = scratch[: part.size]
        # NaN makes both comparisons false, so it cannot pass.
        if not (float(part.min()) >= -bound and float(part.max()) <= bound):
            raise _refusal(part, segment, start)
        np.multiply(part, scale, out=product)
        np.rint(product, out=product)
        np.copyto(signed[start : start + part.size], product, casting="unsafe")


def _refusal(part: AnyArray, segment: Segment, start: int) -> CodecError:
    """Name the first offending element's place; never its value."""
    finite = np.isfinite(part)
    if not finite.all():
        index = start + int(np.argmin(finite))
        return NonFiniteUpdateError("a value is NaN or infinite", segment=segment.name, index=index)
    index = start + int(np.argmax(np.abs(part.astype(np.float64)) > segment.bound))
    return ClipExceededError("a value is over its bound", segment=segment.name, index=index, bound=segment.bound)


def _encode_count(values: NDArray[np.int64], segment: Segment, *, out: NDArray[np.uint64]) -> None:
    if values.size and not (int(values.min()) >= 0 and int(values.max()) <= segment.bound):
        raise ClipExceededError("a count is outside 0 .. bound", segment=segment.name, bound=segment.bound)
    out.view(np.int64)[...] = values


def _encode_scalar(values: Float64Array, segment: Segment, *, out: NDArray[np.uint64]) -> None:
    if values.size and not (float(values.min()) >= -segment.bound and float(values.max()) <= segment.bound):
        raise _refusal(values, segment, 0)
    resolution = Fraction(segment.resolution)
    # round() of a Fraction is exact, ties to even.
    out.view(np.int64)[...] = [round(Fraction(value) / resolution) for value in values.tolist()]
