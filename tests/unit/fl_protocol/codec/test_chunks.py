from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fl_protocol.codec.chunks import (
    ChunkInvalidError,
    ChunkTreeBuilder,
    chunk_root,
    iter_chunks,
    n_chunks,
    verify_chunk,
)

DATA = bytes(range(256)) * 5  # 1280 bytes


@pytest.mark.parametrize(
    ("size", "expected"), [(0, []), (1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])]
)
def test_chunks_of_a_buffer_are_full_but_for_the_last(size: int, expected: list[int]) -> None:
    chunks = list(iter_chunks(DATA[:size], 100))
    assert [len(chunk) for chunk in chunks] == expected
    assert b"".join(chunks) == DATA[:size]
    assert n_chunks(size, 100) == len(expected)


def test_chunks_of_an_array_are_views_of_its_bytes() -> None:
    array = np.arange(8, dtype="<u4")
    first = next(iter_chunks(memoryview(array.data), 16))
    array[0] = 0xFFFFFFFF
    assert bytes(first[:4]) == b"\xff\xff\xff\xff"


def test_chunks_of_no_size_are_refused() -> None:
    with pytest.raises(ChunkInvalidError):
        list(iter_chunks(DATA, 0))


def test_root_of_three_chunks_is_built_by_rfc_6962() -> None:
    a, b, c = DATA[:500], DATA[500:1000], DATA[1000:]
    leaf = [hashlib.sha256(b"\x00" + chunk).digest() for chunk in (a, b, c)]
    left = hashlib.sha256(b"\x01" + leaf[0] + leaf[1]).digest()
    expected = hashlib.sha256(b"\x01" + left + leaf[2]).digest()
    assert chunk_root(iter_chunks(DATA, 500)) == expected
    builder = ChunkTreeBuilder()
    for chunk in (a, b, c):
        builder.add(chunk)
    assert builder.root() == expected
    assert builder.leaves == tuple(leaf)
    assert len(builder) == 3


def test_root_of_a_resumed_upload_is_that_of_an_unbroken_one() -> None:
    first = ChunkTreeBuilder()
    stored = [first.add(chunk) for chunk in list(iter_chunks(DATA, 300))[:3]]
    resumed = ChunkTreeBuilder()
    for leaf in stored:
        resumed.add_leaf(leaf)
    for chunk in list(iter_chunks(DATA, 300))[3:]:
        resumed.add(chunk)
    assert resumed.root() == chunk_root(iter_chunks(DATA, 300))


def test_verification_of_each_chunk_by_its_path_succeeds_and_of_another_fails() -> None:
    chunks = list(iter_chunks(DATA, 300))
    builder = ChunkTreeBuilder()
    for chunk in chunks:
        builder.add(chunk)
    for index, chunk in enumerate(chunks):
        proof = {"index": index, "n_chunks": len(chunks), "path": builder.path(index), "root": builder.root()}
        verify_chunk(chunk, **proof)
        altered = bytearray(chunk)
        altered[-1] ^= 1
        with pytest.raises(ChunkInvalidError) as caught:
            verify_chunk(altered, **proof)
        assert caught.value.facts["index"] == index
