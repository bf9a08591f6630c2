from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.blobs.names import BlobNameDigest, name_from_chunk_root
from coordinator.services.upload_digests import UploadDigests

MIB = 1 << 20
DATA = bytes(range(256)) * (2 * 4096) + b"the rest"


def packed(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def tree_name(data: bytes) -> str:
    """Of three chunks: RFC 6962, section 2.1, written out."""
    first, second, third = (hashlib.sha256(b"\x00" + data[at : at + MIB]).digest() for at in (0, MIB, 2 * MIB))
    left = hashlib.sha256(b"\x01" + first + second).digest()
    root = hashlib.sha256(b"\x01" + left + third).digest()
    return hashlib.sha256(packed(b"wardround/blob/chunk-tree/v1", len(data).to_bytes(8, "big"), root)).hexdigest()


@pytest.mark.parametrize("step", [MIB, 300_001, len(DATA)])
def test_bytes_are_recognised_by_either_name_however_they_are_cut(step: int) -> None:
    for name in (hashlib.sha256(DATA).hexdigest(), tree_name(DATA)):
        digest = BlobNameDigest()
        assert b"".join(digest.watch(DATA[at : at + step] for at in range(0, len(DATA), step))) == DATA
        assert digest.is_of(name)


@given(at=st.integers(0, len(DATA) - 1))
def test_one_byte_changed_is_the_blob_of_neither_name(at: int) -> None:
    altered = bytearray(DATA)
    altered[at] ^= 1
    digest = BlobNameDigest()
    digest.update(altered)
    assert not digest.is_of(hashlib.sha256(DATA).hexdigest())
    assert not digest.is_of(tree_name(DATA))


def test_bytes_of_which_the_tree_is_made_do_not_have_the_trees_name() -> None:
    """The leaf of one chunk is the SHA-256 of a longer blob; the name is not, whatever the chunk."""
    root = hashlib.sha256(b"\x00" + b"chunk").digest()
    name = name_from_chunk_root(root, n_bytes=5)
    for other in (b"\x00chunk", root, b"\x01" + root + root):
        digest = BlobNameDigest()
        digest.update(other)
        assert not digest.is_of(name)


def test_upload_is_named_by_its_tree_or_by_its_bytes_where_the_tree_has_other_chunks() -> None:
    of_the_wire = UploadDigests.of([DATA[:7], DATA[7:]], chunk_bytes=MIB)
    assert of_the_wire.finish()[0] == tree_name(DATA)
    of_others = UploadDigests.of([DATA], chunk_bytes=1 << 16)
    assert of_others.finish()[0] == hashlib.sha256(DATA).hexdigest()
