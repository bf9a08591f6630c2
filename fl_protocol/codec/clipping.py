"""The norm of an update, and an update cut to a norm: on purpose and once, by the site, before it is encoded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fl_protocol.codec.errors import ClipExceededError, NonFiniteUpdateError, SegmentShapeError
from fl_protocol.codec.fixed_point import CACHED_ELEMENTS, Float32Array, Float64Array


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
    for place, wide in _widened(update):
        clipped[place] = np.multiply(wide, factor, out=wide)
    return clipped, True


def l2_norm(update: Float32Array) -> float:
    """The Euclidean norm of a float32 vector, accumulated in float64; at least the largest |element|.

    Raises:
        NonFiniteUpdateError: an element is NaN or infinite.
    """
    total = 0.0
    for _, wide in _widened(update):
        # Not np.dot: its threads wait for each other longer than a piece takes.
        np.multiply(wide, wide, out=wide)
        total += float(wide.sum())
    # The square of a finite float32 is below 2**256, so float64 overflows on nothing that is finite here.
    if not math.isfinite(total):
        raise NonFiniteUpdateError("the update has an element that is NaN or infinite")
    return math.sqrt(total)


def _widened(update: Float32Array) -> Iterator[tuple[slice, Float64Array]]:
    """The update in float64, a piece at a time: where it belongs, and the piece, to be used up before the next.

    Widened before anything is computed: numpy multiplies and casts at once through small buffers, which takes twice as
    long.
    """
    memory = np.empty(min(CACHED_ELEMENTS, update.size), dtype=np.float64)
    for start in range(0, update.size, CACHED_ELEMENTS):
        place = slice(start, min(start + CACHED_ELEMENTS, update.size))
        piece = memory[: place.stop - start]
        piece[...] = update[place]
        yield place, piece
