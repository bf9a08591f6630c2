"""One ring vector to which masked vectors are added chunk by chunk. Bonawitz et al. (CCS 2017), the server's sum.

Memory: the vector, and one word that a chunk boundary may cut. What it holds before the masks are removed is uniform
noise to everyone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from coordinator.errors import VectorLengthError
from fl_protocol.codec.ring_vector import UINT32_LE, UINT64_LE, RingVector
from fl_protocol.secagg.masking import MaskTerm, apply_masks, mask_ranges

Chunk = bytes | bytearray | memoryview


class RingAccumulator:
    """The running sum, modulo 2**32 and 2**64.

    Invariant: after k calls of ``add`` it is the sum of exactly k whole vectors; a call that raised leaves it unusable.
    """

    def __init__(self, *, n_ring32: int, n_ring64: int) -> None:
        self._sum = RingVector.zeros(n_ring32, n_ring64)
        self._n_added = 0
        self._is_broken = False

    @property
    def n_added(self) -> int:
        """How many vectors are in the sum."""
        return self._n_added

    @property
    def vector(self) -> RingVector:
        """The sum; the array is the accumulator's own."""
        if self._is_broken:
            raise VectorLengthError("the sum holds part of a vector and cannot be used")
        return self._sum

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add one vector, given as its wire image in pieces of any size; each may be overwritten after its turn.

        Raises:
            VectorLengthError: the pieces are together shorter or longer than the vector.
        """
        self._is_broken = True
        position, carry = 0, b""
        total = self._sum.n_bytes
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            if position + len(carry) + len(view) > total:
                raise VectorLengthError("a masked vector is longer than the layout says", expected_bytes=total)
            if carry:
                n_missing = self._word_bytes(position) - len(carry)
                carry += bytes(view[:n_missing])
                view = view[n_missing:]
                if len(carry) < self._word_bytes(position):
                    continue
                position = self._add_words(carry, position)
                carry = b""
            position, carry = self._add_view(view, position)
        if position != total or carry:
            raise VectorLengthError(
                "a masked vector is shorter than the layout says", expected_bytes=total, n_bytes=position
            )
        self._is_broken = False
        self._n_added += 1

    def remove_masks(self, terms: Sequence[MaskTerm], *, start_byte: int, stop_byte: int) -> None:
        """Apply the recovered terms to one range of the sum; neighbouring ranges may run in other threads."""
        apply_masks(self.vector, terms, start_byte=start_byte, stop_byte=stop_byte)

    def mask_removals(self, terms: Sequence[MaskTerm], n_ranges: int) -> tuple[Callable[[], None], ...]:
        """``remove_masks`` over the whole vector, as disjoint pieces of work."""
        return mask_ranges(self.vector, terms, n_ranges)

    def _word_bytes(self, position: int) -> int:
        return 4 if position < self._sum.ring32.nbytes else 8

    def _add_view(self, view: memoryview, position: int) -> tuple[int, bytes]:
        """Add the whole words of ``view``; what is left of it is the beginning of the next word."""
        boundary = self._sum.ring32.nbytes
        while len(view):
            word = self._word_bytes(position)
            room = boundary - position if position < boundary else len(view)
            n_whole = min(len(view), room) // word * word
            if n_whole == 0:
                return position, bytes(view)
            position = self._add_words(view[:n_whole], position)
            view = view[n_whole:]
        return position, b""

    def _add_words(self, words: bytes | memoryview, position: int) -> int:
        boundary = self._sum.ring32.nbytes
        n_bytes = len(words)
        if position < boundary:
            first = position // 4
            part32 = self._sum.ring32[first : first + n_bytes // 4]
            np.add(part32, np.frombuffer(words, UINT32_LE), out=part32)
        else:
            first = (position - boundary) // 8
            part64 = self._sum.ring64[first : first + n_bytes // 8]
            np.add(part64, np.frombuffer(words, UINT64_LE), out=part64)
        return position + n_bytes
