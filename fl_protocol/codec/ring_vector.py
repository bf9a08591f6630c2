"""The vector that is masked, sent and summed: 32-bit words, then 64-bit words, little-endian on the wire.

Knows no segment and no mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ProtocolError

UINT32_LE = np.dtype("<u4")
UINT64_LE = np.dtype("<u8")


class RingVectorInvalidError(ProtocolError):
    """Arrays or bytes that should be a ring vector are not."""

    code = "ring-vector-invalid"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RingVector:
    """Elements of the two rings.

    Invariant: both arrays are one-dimensional, C-contiguous and little-endian, so that their memory is the wire image.
    The arrays may be changed in place; the shapes may not.

    Attributes:
        ring32: uint32, shape (n32,), integers modulo 2**32.
        ring64: uint64, shape (n64,), integers modulo 2**64.
    """

    ring32: NDArray[np.uint32]
    ring64: NDArray[np.uint64]

    def __post_init__(self) -> None:
        for array, dtype in ((self.ring32, UINT32_LE), (self.ring64, UINT64_LE)):
            if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
                raise RingVectorInvalidError(
                    "a ring vector is contiguous, one-dimensional and little-endian",
                    dtype=str(array.dtype),
                    expected=str(dtype),
                    dimensions=array.ndim,
                )

    def __repr__(self) -> str:
        """Its shape; never its elements."""
        return f"RingVector(n32={self.ring32.size}, n64={self.ring64.size})"

    @classmethod
    def zeros(cls, n32: int, n64: int) -> RingVector:
        """A vector of zeros."""
        return cls(ring32=np.zeros(n32, UINT32_LE), ring64=np.zeros(n64, UINT64_LE))

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray | memoryview, *, n32: int, n64: int, is_shared: bool = False
    ) -> RingVector:
        """Read the wire image; the arrays are copies, or, with ``is_shared``, views of ``data``.

        Raises:
            RingVectorInvalidError: the bytes are not ``4 * n32 + 8 * n64`` long.
        """
        view = memoryview(data).cast("B")
        if len(view) != 4 * n32 + 8 * n64:
            raise RingVectorInvalidError("the wire image has another size", n_bytes=len(view), n32=n32, n64=n64)
        ring32 = np.frombuffer(view[: 4 * n32], UINT32_LE)
        ring64 = np.frombuffer(view[4 * n32 :], UINT64_LE)
        return cls(ring32=ring32, ring64=ring64) if is_shared else cls(ring32=ring32.copy(), ring64=ring64.copy())

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes | bytearray | memoryview], *, n32: int, n64: int) -> RingVector:
        """Read the wire image that comes in pieces of any size; each may be overwritten after its turn.

        Raises:
            RingVectorInvalidError: the pieces are together not ``4 * n32 + 8 * n64`` bytes long.
        """
        vector = cls(ring32=np.empty(n32, UINT32_LE), ring64=np.empty(n64, UINT64_LE))
        position = 0
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            if position + len(view) > vector.n_bytes:
                raise RingVectorInvalidError("the wire image is too long", n32=n32, n64=n64)
            position = vector._write(view, position)
        if position != vector.n_bytes:
            raise RingVectorInvalidError("the wire image is too short", n_bytes=position, n32=n32, n64=n64)
        return vector

    def _write(self, view: memoryview, position: int) -> int:
        """Write bytes of the wire image where they belong; returns the position behind them."""
        first, second = self.buffers()
        in_first = view[: max(len(first) - position, 0)]
        in_second = view[len(in_first) :]
        start = position + len(in_first) - len(first)
        # An empty section has no memory to write to.
        if len(in_first):
            first[position : position + len(in_first)] = in_first
        if len(in_second):
            second[start : start + len(in_second)] = in_second
        return position + len(view)

    @property
    def n_bytes(self) -> int:
        """The size of the wire image."""
        return self.ring32.nbytes + self.ring64.nbytes

    def buffers(self) -> tuple[memoryview, memoryview]:
        """The two halves of the wire image, without copying."""
        return _bytes_of(self.ring32), _bytes_of(self.ring64)

    def to_bytes(self) -> bytes:
        """The wire image: ring32, then ring64."""
        return b"".join(self.buffers())

    def iter_chunks(self, chunk_bytes: int) -> Iterator[memoryview | bytes]:
        """The wire image cut into chunks; only a chunk that holds words of both rings is a copy."""
        first, second = self.buffers()
        total = len(first) + len(second)
        for start in range(0, total, chunk_bytes):
            stop = min(start + chunk_bytes, total)
            if stop <= len(first):
                yield first[start:stop]
            elif start >= len(first):
                yield second[start - len(first) : stop - len(first)]
            else:
                yield bytes(first[start:]) + bytes(second[: stop - len(first)])

    def sha256(self) -> bytes:
        """SHA-256 of the wire image, 32 bytes."""
        digest = hashlib.sha256()
        for buffer in self.buffers():
            digest.update(buffer)
        return digest.digest()

    def equals(self, other: RingVector) -> bool:
        """Whether both hold the same words."""
        return np.array_equal(self.ring32, other.ring32) and np.array_equal(self.ring64, other.ring64)

    def copy(self) -> RingVector:
        """A vector of its own with the same words."""
        return RingVector(ring32=self.ring32.copy(), ring64=self.ring64.copy())


def _bytes_of(array: NDArray[np.uint32] | NDArray[np.uint64]) -> memoryview:
    # memoryview.cast refuses a shape that contains a zero, hence the detour for an empty section.
    return memoryview(array.view(np.uint8).data) if array.size else memoryview(b"")
