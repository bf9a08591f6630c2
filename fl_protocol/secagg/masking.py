"""The one kernel that adds and removes masks, at the site and at the coordinator.

A mask term is a pair of keys and a sign. Its mask of the 32-bit section is the keystream of ``key32``, its mask of the
64-bit section that of ``key64``, both read as little-endian words from the start of the section; since a keystream can
be entered anywhere, any range of the vector can be masked alone, in any thread, or again for one chunk in an audit.

Chunks outside, peers inside: a chunk of the vector stays in the cache while every peer's mask is added to it, and the
memory used beyond the vector is two chunks, however many peers there are. The cipher and numpy release the GIL.
Bonawitz et al. (CCS 2017), section 4; design 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.ring_vector import RingVector, RingVectorInvalidError
from fl_protocol.packing import pack
from fl_protocol.secagg.key_agreement import hkdf_expand
from fl_protocol.secagg.prg import Keystream

CACHE_CHUNK_BYTES = 1 << 18
"""The chunk that is kept in the cache: with its keystream and the zeros it fits a level-2 cache."""

RunAll = Callable[[Sequence[Callable[[], None]]], None]
"""Runs every piece of work to its end, in any order, perhaps in threads."""

RingWords = NDArray[np.uint32] | NDArray[np.uint64]


class MaskSign(StrEnum):
    """Whether a mask is added or taken away."""

    ADD = "add"
    SUBTRACT = "subtract"

    @property
    def opposite(self) -> MaskSign:
        """The sign that undoes this one."""
        return MaskSign.SUBTRACT if self is MaskSign.ADD else MaskSign.ADD


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTerm:
    """One mask to apply. Safety: ``key32`` and ``key64`` are used for no other stream."""

    key32: bytes = field(repr=False)
    key64: bytes = field(repr=False)
    sign: MaskSign


def mask_term(seed: bytes, sign: MaskSign) -> MaskTerm:
    """The term of one 32-byte seed: one key a section, by HKDF-Expand."""
    return MaskTerm(
        key32=hkdf_expand(seed, pack(b"SA1/ring32")), key64=hkdf_expand(seed, pack(b"SA1/ring64")), sign=sign
    )


def run_in_order(work: Sequence[Callable[[], None]]) -> None:
    """Run the pieces of work one after the other, in this thread."""
    for piece in work:
        piece()


def apply_masks(
    vector: RingVector,
    terms: Sequence[MaskTerm],
    *,
    start_byte: int = 0,
    stop_byte: int | None = None,
    first32: int = 0,
    first64: int = 0,
) -> None:
    """Add or subtract every term's mask, in place, modulo 2**32 and 2**64.

    Args:
        vector: a ring vector, or a window of a longer one.
        terms: the masks, in any order.
        start_byte: of the wire image of ``vector``; a word belongs to the range in which its first byte lies, so that
            neighbouring ranges touch every word once.
        stop_byte: the end of the range; None is the end of the vector.
        first32: where the first 32-bit word of a window stands in the whole 32-bit section.
        first64: where the first 64-bit word of a window stands in the whole 64-bit section.

    Raises:
        RingVectorInvalidError: the range is not inside the vector.
    """
    stop = vector.n_bytes if stop_byte is None else stop_byte
    if not 0 <= start_byte <= stop <= vector.n_bytes or min(first32, first64) < 0:
        raise RingVectorInvalidError("the range is not inside the vector", start_byte=start_byte, stop_byte=stop)
    head = vector.ring32.nbytes
    first, last = _words_between(start_byte, stop, word_bytes=4, n_words=vector.ring32.size)
    _mask_words(vector.ring32[first:last], [(t.key32, t.sign) for t in terms], offset=4 * (first32 + first))
    first, last = _words_between(start_byte - head, stop - head, word_bytes=8, n_words=vector.ring64.size)
    _mask_words(vector.ring64[first:last], [(t.key64, t.sign) for t in terms], offset=8 * (first64 + first))


def mask_ranges(vector: RingVector, terms: Sequence[MaskTerm], n_ranges: int) -> tuple[Callable[[], None], ...]:
    """``apply_masks`` cut into disjoint pieces of work that together mask the whole vector.

    Args:
        vector: a ring vector.
        terms: the masks.
        n_ranges: how many pieces at most; a small vector is one piece.
    """
    step = max(CACHE_CHUNK_BYTES, -(-vector.n_bytes // max(n_ranges, 1)))
    step += -step % CACHE_CHUNK_BYTES
    return tuple(
        partial(apply_masks, vector, terms, start_byte=start, stop_byte=min(start + step, vector.n_bytes))
        for start in range(0, vector.n_bytes, step)
    )


def add_into(accumulator: RingVector, addend: RingVector) -> None:
    """Add a vector to the accumulator, word by word, in place, modulo 2**32 and 2**64.

    Raises:
        RingVectorInvalidError: they have different shapes.
    """
    if accumulator.ring32.size != addend.ring32.size or accumulator.ring64.size != addend.ring64.size:
        raise RingVectorInvalidError("two vectors of different shapes have no sum", n_bytes=addend.n_bytes)
    np.add(accumulator.ring32, addend.ring32, out=accumulator.ring32)
    np.add(accumulator.ring64, addend.ring64, out=accumulator.ring64)


def _words_between(start_byte: int, stop_byte: int, *, word_bytes: int, n_words: int) -> tuple[int, int]:
    """The words of a section whose first byte lies in the range, relative to the section's first byte."""
    first = min(max(-(-start_byte // word_bytes), 0), n_words)
    last = min(max(-(-stop_byte // word_bytes), first), n_words)
    return first, last


def _mask_words(words: RingWords, keys: Sequence[tuple[bytes, MaskSign]], *, offset: int) -> None:
    """Mask consecutive words of one section, the first of which stands ``offset`` bytes into its keystreams."""
    if not words.size or not keys:
        return
    chunk_words = min(CACHE_CHUNK_BYTES // words.itemsize, words.size)
    zeros = memoryview(bytes(chunk_words * words.itemsize))
    keystream = np.empty(chunk_words, words.dtype)
    out = memoryview(keystream.view(np.uint8).data)
    # One cipher a peer for the whole range: it keeps its own counter from chunk to chunk.
    streams = [
        (Keystream(key, offset=offset).read_into, np.add if sign is MaskSign.ADD else np.subtract) for key, sign in keys
    ]
    for start in range(0, words.size, chunk_words):
        chunk = words[start : start + chunk_words]
        mask = keystream[: chunk.size]
        zeros_part, out_part = zeros[: chunk.nbytes], out[: chunk.nbytes]
        for read_into, combine in streams:
            read_into(zeros_part, out_part)
            combine(chunk, mask, out=chunk)
