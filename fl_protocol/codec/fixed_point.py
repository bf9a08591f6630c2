"""Real numbers as integers modulo 2**32 or 2**64, so that their sum can be taken under masks; and back.

What may not happen here: a value that is clamped, wrapped or rounded without its bound being stated. A site calls
``clip_l2`` on purpose, once; after that everything that does not fit raises. Knows no mask and no algorithm.

    CodecError
    ├── MissingSegmentError         the payload lacks a segment (for one too many: UnknownSegmentError of spec)
    ├── SegmentShapeError           length or dtype is not the declared one
    ├── NonFiniteUpdateError        NaN or infinity
    ├── ClipExceededError           a value is over its segment's bound
    ├── SumSpentError               a sum that was given up is looked at after it was used up
    └── ImplausibleSumError         a decoded sum that no honest cohort can have produced

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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.errors import ProtocolError
from fl_protocol.spec.payload_layout import CapacityError, PayloadLayout, Segment, SegmentKind

AnyArray = NDArray[Any]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

_CHUNK = 1 << 16
"""Elements worked on at a time: 256 KiB of float32, which stays in a core's cache."""

_RELATIVE_ROUNDING = 2.0**-24
"""The largest relative error of one float32 rounding."""


class CodecError(ProtocolError):
    """A payload does not fit the layout that was agreed, or a sum does not."""

    code = "codec-error"


class MissingSegmentError(CodecError):
    """A payload lacks a segment of the layout."""

    code = "segment-missing"


class SegmentShapeError(CodecError):
    """A segment's shape or dtype is not what the layout says."""

    code = "segment-shape"


class NonFiniteUpdateError(CodecError):
    """A value is NaN or infinite."""

    code = "update-not-finite"


class ClipExceededError(CodecError):
    """A value is over its segment's bound; the caller clips, we never do."""

    code = "bound-exceeded"


class SumSpentError(CodecError):
    """A sum was given up, and its memory holds something else by now."""

    code = "sum-spent"


class ImplausibleSumError(CodecError):
    """A sum lies outside what the declared number of honest sites can add up to."""

    code = "sum-implausible"


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


def clip_l2(update: Float32Array, clip_norm: float) -> tuple[Float32Array, bool]:
    """Scale an update down to L2 norm ``clip_norm`` where it is longer; say whether it was.

    The norm is taken in float64. Where it is above ``clip_norm``, each element becomes
    float32(float64(x) * f), f = clip_norm (1 - 2**-22) / norm; the margin pays for the rounding to float32, so that the
    result's norm, and therefore each element, is not above ``clip_norm``.

    Args:
        update: float32, shape (d,), finite.
        clip_norm: finite, > 0.

    Returns:
        ``update`` itself where it is short enough, else a new float32 array, shape (d,).

    Raises:
        NonFiniteUpdateError: an element is NaN or infinite.
        SegmentShapeError: not a float32 vector.
    """
    if update.dtype != np.float32 or update.ndim != 1:
        raise SegmentShapeError("an update is a float32 vector", dtype=str(update.dtype), n_dimensions=update.ndim)
    if not math.isfinite(clip_norm) or clip_norm <= 0:
        raise ClipExceededError("clip_norm is a finite number above zero", clip_norm=clip_norm)
    norm = l2_norm(update)
    if norm <= clip_norm:
        return update, False
    factor = clip_norm * (1.0 - 2.0**-22) / norm
    clipped = np.empty_like(update)
    wide = np.empty(min(_CHUNK, update.size), dtype=np.float64)
    for start in range(0, update.size, _CHUNK):
        part = update[start : start + _CHUNK]
        view = wide[: part.size]
        # Widened first: numpy multiplies and casts at once through small buffers, which takes twice as long.
        view[...] = part
        np.multiply(view, factor, out=view)
        clipped[start : start + _CHUNK] = view
    return clipped, True


def l2_norm(update: Float32Array) -> float:
    """The Euclidean norm of a float32 vector, accumulated in float64; at least the largest |element|.

    Raises:
        NonFiniteUpdateError: an element is NaN or infinite.
    """
    total = 0.0
    wide = np.empty(min(_CHUNK, update.size), dtype=np.float64)
    for start in range(0, update.size, _CHUNK):
        part = update[start : start + _CHUNK]
        view = wide[: part.size]
        view[...] = part
        # Not np.dot: its threads wait for each other longer than a chunk takes.
        np.multiply(view, view, out=view)
        total += float(view.sum())
    # The square of a finite float32 is below 2**256, so float64 overflows on nothing that is finite here.
    if not math.isfinite(total):
        raise NonFiniteUpdateError("the update has an element that is NaN or infinite")
    return math.sqrt(total)


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
        wide = np.empty(min(_CHUNK, self.size), dtype=np.float64)
        offset = 0
        for n_elements, factor in pieces:
            end = offset + n_elements
            for start in range(offset, end, _CHUNK):
                stop = min(start + _CHUNK, end)
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
    scratch = np.empty(min(_CHUNK, values.size), dtype=np.float32)
    bound = segment.bound
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
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


def _check_sum(signed: NDArray[np.int32] | NDArray[np.int64], segment: Segment, *, low: int, high: int) -> None:
    if signed.size and not (int(signed.min()) >= low and int(signed.max()) <= high):
        raise ImplausibleSumError("a sum is outside what the counted sites may add up to", segment=segment.name)
