from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest

from fl_protocol.codec.ring_vector import RingVector, RingVectorInvalidError


def sample(n32: int = 5, n64: int = 3) -> RingVector:
    return RingVector(
        ring32=np.arange(1, n32 + 1, dtype="<u4"), ring64=np.arange(1, n64 + 1, dtype="<u8") * np.uint64(2**40)
    )


def test_ring_vector_wire_image_is_little_endian_and_ring32_first() -> None:
    vector = RingVector(ring32=np.array([1, 0x01020304], "<u4"), ring64=np.array([2], "<u8"))
    assert vector.to_bytes().hex() == "01000000" + "04030201" + "0200000000000000"
    assert vector.n_bytes == 16
    assert vector.sha256() == hashlib.sha256(vector.to_bytes()).digest()


@pytest.mark.parametrize(("n32", "n64"), [(5, 3), (1, 0), (0, 1), (0, 0)])
def test_ring_vector_from_bytes_is_what_was_written_and_a_copy(n32: int, n64: int) -> None:
    vector = sample(n32, n64)
    data = bytearray(vector.to_bytes())
    read = RingVector.from_bytes(data, n32=n32, n64=n64)
    assert read.equals(vector)
    data[:] = bytes(len(data))
    assert read.equals(vector)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 16, 20, 24, 1000])
def test_ring_vector_chunks_joined_are_the_wire_image(chunk_bytes: int) -> None:
    vector = sample()
    chunks = [bytes(chunk) for chunk in vector.iter_chunks(chunk_bytes)]
    assert b"".join(chunks) == vector.to_bytes()
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_bytes}
    assert 0 < len(chunks[-1]) <= chunk_bytes


def test_ring_vector_wrong_size_dtype_or_shape_is_refused() -> None:
    with pytest.raises(RingVectorInvalidError):
        RingVector.from_bytes(bytes(17), n32=2, n64=1)
    good = np.zeros(4, "<u8")
    for bad in (np.zeros(4, "<i4"), np.zeros(4, ">u4"), np.zeros((2, 2), "<u4"), np.zeros(8, "<u4")[::2]):
        with pytest.raises(RingVectorInvalidError):
            RingVector(ring32=bad, ring64=good)


def test_ring_vector_repr_shows_no_word() -> None:
    assert repr(sample()) == "RingVector(n32=5, n64=3)"


def test_ring_vector_copy_is_independent() -> None:
    vector = sample()
    other = vector.copy()
    other.ring32[0] = 99
    assert not other.equals(vector)


@pytest.mark.parametrize(("n32", "n64"), [(5, 3), (4, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("piece_bytes", [1, 3, 8, 20, 24, 1000])
def test_ring_vector_from_pieces_is_what_they_are_together(n32: int, n64: int, piece_bytes: int) -> None:
    data = sample(n32, n64).to_bytes()
    buffer = bytearray(piece_bytes)

    def pieces() -> Iterator[memoryview]:
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            # One buffer for all: whatever of an earlier piece is looked at later would be wrong.
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    vector = RingVector.from_chunks(pieces(), n32=n32, n64=n64)
    assert vector.to_bytes() == data
    assert vector.ring32.tolist() == sample(n32, n64).ring32.tolist()


@pytest.mark.parametrize("change", [-1, 1])
def test_ring_vector_from_pieces_of_another_length_is_refused(change: int) -> None:
    pieces = [bytes(16), bytes(28 + change)]
    with pytest.raises(RingVectorInvalidError):
        RingVector.from_chunks(pieces, n32=5, n64=3)
