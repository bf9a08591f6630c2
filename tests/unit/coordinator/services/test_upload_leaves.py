"""Who knows the tree of a masked upload: the process that received it, and one that read it once for everybody."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.errors import BlobNotFoundError
from coordinator.services.upload_digests import UploadDigests
from coordinator.services.upload_leaves import UploadLeaves
from fl_protocol.codec.chunks import verify_chunk

MIB = 1 << 20
DATA = random.Random(11).randbytes(3 * MIB + 5)
CHUNKS = [DATA[at : at + MIB] for at in range(0, len(DATA), MIB)]


class CountingStore(FilesystemBlobStore):
    """A folder store that counts how often a whole blob is read."""

    n_readings = 0

    def iter_views(self, sha256: str, *, chunk_bytes: int = MIB) -> Iterator[memoryview]:
        self.n_readings += 1
        yield from super().iter_views(sha256, chunk_bytes=chunk_bytes)


def received(data: bytes = DATA) -> tuple[str, bytes, UploadDigests]:
    """What a process knows of an upload that came in pieces of no particular length."""
    digests = UploadDigests(MIB)
    for at in range(0, len(data), 70_001):
        digests.add(data[at : at + 70_001])
    name, root = digests.finish()
    return name, root, digests


def test_every_site_of_a_cohort_that_asks_at_the_same_time_waits_for_one_reading(tmp_path: Path) -> None:
    store, leaves = CountingStore(tmp_path), UploadLeaves()
    name = store.put_bytes(DATA).sha256
    _, root, _ = received()
    start = threading.Barrier(8)

    def ask(index: int) -> None:
        start.wait()
        path = leaves.of(store, name).path(index)
        verify_chunk(CHUNKS[index], index=index, n_chunks=len(CHUNKS), path=path, root=root)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [*range(len(CHUNKS))] * 2))
    assert store.n_readings == 1


def test_an_upload_that_was_received_here_is_not_read_at_all(tmp_path: Path) -> None:
    store, leaves = FilesystemBlobStore(tmp_path), UploadLeaves()
    name, root, digests = received()
    tree = digests.wire_tree
    assert tree is not None
    leaves.remember(name, tree)
    # The store has no blob whatever.
    for index, chunk in enumerate(CHUNKS):
        path = leaves.of(store, name).path(index)
        verify_chunk(chunk, index=index, n_chunks=len(CHUNKS), path=path, root=root)


def test_a_tree_over_other_chunks_than_those_of_the_wire_is_nobodys_path() -> None:
    digests = UploadDigests(1 << 16)
    digests.add(DATA)
    digests.finish()
    assert digests.wire_tree is None


def test_a_reading_that_fails_is_tried_again_by_the_next_who_asks(tmp_path: Path) -> None:
    store, leaves = FilesystemBlobStore(tmp_path), UploadLeaves()
    name = received()[0]
    with pytest.raises(BlobNotFoundError):
        leaves.of(store, name)
    stored = store.put_bytes(DATA)
    assert len(leaves.of(store, stored.sha256)) == len(CHUNKS)
    with pytest.raises(BlobNotFoundError):
        leaves.of(store, name if name != stored.sha256 else "0" * 64)


def test_uploads_that_were_asked_for_longest_ago_are_forgotten(tmp_path: Path) -> None:
    store, leaves = CountingStore(tmp_path), UploadLeaves(max_remembered=2)
    first, second, third = (store.put_bytes(DATA[:n]).sha256 for n in (10, 20, 30))
    for name in (first, second, first, third, first):
        leaves.of(store, name)
    assert store.n_readings == 3
    leaves.of(store, second)
    assert store.n_readings == 4
