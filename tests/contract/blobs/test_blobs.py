"""What every BlobStore promises about blobs."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.blobs.store import BlobStore
from coordinator.errors import BlobDigestMismatchError, BlobNotFoundError, BlobOffsetError

SMALL = bytes(range(256)) * 11
LARGE = random.Random(17).randbytes((21 << 20) + 5)
"""More than two objects of an object store, and no multiple of a chunk."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_blob_is_found_by_its_digest_however_it_was_cut(store: BlobStore, data: bytes) -> None:
    digest = digest_of(data)
    assert not store.has(digest)
    for cut in (len(data), 100_003):
        pieces = [memoryview(data)[start : start + cut] for start in range(0, len(data), cut or 1)]
        stored = store.put(pieces, expected_sha256=digest)
        assert (stored.sha256, stored.n_bytes) == (digest, len(data))
    assert store.has(digest)
    assert store.size(digest) == len(data)
    assert store.read(digest) == data
    assert list(store.iter_digests()) == [digest]


@pytest.mark.parametrize("offset", [0, 7, 1 << 20, (8 << 20) - 1, 8 << 20, len(LARGE) - 1, len(LARGE)])
def test_blob_is_read_from_any_offset_in_pieces(store: BlobStore, offset: int) -> None:
    digest = store.put_bytes(LARGE).sha256
    pieces = list(store.iter_chunks(digest, offset=offset, chunk_bytes=1 << 20))
    assert b"".join(pieces) == LARGE[offset:]
    assert {len(piece) for piece in pieces[:-1]} <= {1 << 20}


def test_views_are_the_bytes_in_order(store: BlobStore) -> None:
    digest = store.put_bytes(LARGE).sha256
    found = hashlib.sha256()
    for view in store.iter_views(digest, chunk_bytes=1 << 20):
        found.update(view)
    assert found.hexdigest() == digest


def test_offset_outside_the_blob_is_refused_before_the_first_piece(store: BlobStore) -> None:
    digest = store.put_bytes(SMALL).sha256
    for offset in (-1, len(SMALL) + 1):
        with pytest.raises(BlobOffsetError):
            store.iter_chunks(digest, offset=offset)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_blob_with_another_digest_than_expected_is_not_kept(store: BlobStore, data: bytes) -> None:
    with pytest.raises(BlobDigestMismatchError):
        store.put([data], expected_sha256="0" * 64)
    assert list(store.iter_digests()) == []
    assert not store.has(digest_of(data))


@pytest.mark.parametrize("name", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63])
def test_unknown_or_odd_digest_is_not_found(store: BlobStore, name: str) -> None:
    assert not store.has(name)
    for read in (store.read, store.size, store.iter_chunks, store.iter_views):
        with pytest.raises(BlobNotFoundError):
            read(name)


def test_source_that_fails_leaves_nothing(store: BlobStore) -> None:
    def broken():  # noqa: ANN202 # a generator that breaks
        yield LARGE
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        store.put(broken())
    assert list(store.iter_digests()) == []


def test_deleted_blob_is_gone_and_deleting_again_is_nothing(store: BlobStore) -> None:
    kept, gone = store.put_bytes(SMALL).sha256, store.put_bytes(b"gone").sha256
    for _ in range(2):
        store.delete(gone)
        assert not store.has(gone)
    assert list(store.iter_digests()) == [kept]


def test_digests_are_listed_without_partials(store: BlobStore) -> None:
    held = {store.put_bytes(bytes([n])).sha256 for n in range(30)}
    writer = store.open_partial("u.1")
    writer.append(SMALL)
    writer.close()
    listing = store.iter_digests()
    assert next(listing) in held
    assert set(store.iter_digests()) == held


def test_free_bytes_are_a_figure_or_not_known(store: BlobStore) -> None:
    free = store.free_bytes()
    assert free is None or free >= 0


def test_same_blob_put_by_many_threads_is_one_blob(store: BlobStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        stored = list(pool.map(lambda _: store.put_bytes(LARGE), range(6)))
    assert {one.sha256 for one in stored} == {digest_of(LARGE)}
    assert store.read(digest_of(LARGE)) == LARGE
