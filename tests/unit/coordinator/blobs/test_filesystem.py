from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Self

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.errors import BlobDigestMismatchError, BlobNotFoundError, BlobOffsetError, BlobStoreFullError

DATA = bytes(range(256)) * 11


@pytest.fixture
def store(tmp_path: Path) -> FilesystemBlobStore:
    return FilesystemBlobStore(tmp_path / "blobs")


def files_of(store: FilesystemBlobStore) -> list[str]:
    return sorted(path.name for path in store._root.rglob("*") if path.is_file())


def test_blob_is_found_by_its_digest_and_stored_once(store: FilesystemBlobStore) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    for _ in range(2):
        stored = store.put([DATA[:100], memoryview(DATA)[100:]])
        assert (stored.sha256, stored.n_bytes) == (digest, len(DATA))
    assert store.read(digest) == DATA
    assert store.size(digest) == len(DATA)
    assert files_of(store) == [digest]


def test_blob_is_read_in_pieces_from_any_offset(store: FilesystemBlobStore) -> None:
    digest = store.put_bytes(DATA).sha256
    assert b"".join(store.iter_chunks(digest, offset=7, chunk_bytes=100)) == DATA[7:]
    assert b"".join(bytes(view) for view in store.iter_views(digest, chunk_bytes=100)) == DATA
    with pytest.raises(BlobOffsetError):
        store.iter_chunks(digest, offset=len(DATA) + 1)


def test_blob_with_another_digest_than_expected_is_not_kept(store: FilesystemBlobStore) -> None:
    with pytest.raises(BlobDigestMismatchError):
        store.put_bytes(DATA, expected_sha256="0" * 64)
    assert files_of(store) == []


@pytest.mark.parametrize("name", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63])
def test_unknown_or_odd_digest_is_not_found(store: FilesystemBlobStore, name: str) -> None:
    assert not store.has(name)
    for read in (store.read, store.size, store.iter_chunks):
        with pytest.raises(BlobNotFoundError):
            read(name)


def test_source_that_fails_leaves_nothing(store: FilesystemBlobStore) -> None:
    def broken():  # noqa: ANN202 # a generator that breaks
        yield DATA
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        store.put(broken())
    assert files_of(store) == []


def test_partial_grows_only_at_its_end_and_becomes_the_blob(store: FilesystemBlobStore) -> None:
    assert store.partial_size("u.1") == 0
    assert store.append_partial("u.1", offset=0, data=DATA[:50]) == 50
    for offset in (0, 49, 51):
        with pytest.raises(BlobOffsetError):
            store.append_partial("u.1", offset=offset, data=b"x")
    assert store.append_partial("u.1", offset=50, data=DATA[50:]) == len(DATA)
    assert b"".join(store.iter_partial("u.1", chunk_bytes=64)) == DATA
    digest = hashlib.sha256(DATA).hexdigest()
    for _ in range(2):
        assert store.finish_partial("u.1", sha256=digest).n_bytes == len(DATA)
    assert store.partial_size("u.1") == 0
    assert store.read(digest) == DATA


def test_partial_that_is_discarded_begins_anew(store: FilesystemBlobStore) -> None:
    store.append_partial("u.2", offset=0, data=b"abc")
    store.discard_partial("u.2")
    assert store.partial_size("u.2") == 0
    assert list(store.iter_partial("u.2")) == []
    with pytest.raises(BlobNotFoundError):
        store.finish_partial("u.2", sha256="0" * 64)
    with pytest.raises(BlobNotFoundError):
        store.append_partial("../u", offset=0, data=b"abc")


def test_digests_held_are_listed_without_partials_and_strangers(store: FilesystemBlobStore) -> None:
    held = {store.put_bytes(bytes([n])).sha256 for n in range(5)}
    store.append_partial("u.4", offset=0, data=DATA)
    stray = store._root / next(iter(held))[:2] / "notes.txt"
    stray.write_text("not a blob")
    assert set(store.iter_digests()) == held
    gone = held.pop()
    store.delete(gone)
    store.delete(gone)
    assert set(store.iter_digests()) == held


def test_free_bytes_are_those_of_the_file_system(store: FilesystemBlobStore) -> None:
    room = shutil.disk_usage(store._root)
    free = store.free_bytes()
    assert free is not None
    assert 0 <= free <= room.total


def test_full_disk_is_a_typed_error_and_loses_nothing(
    store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BlobStoreFullError):
            store.put_bytes(DATA)
    assert files_of(store) == []
    assert store.put_bytes(DATA).n_bytes == len(DATA)


def test_full_disk_keeps_what_a_partial_held(store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append_partial("u.3", offset=0, data=DATA[:100])
    real_open = Path.open

    def open_full(self: Path, *args: object, **options: object) -> object:
        return _FullFile(real_open(self, *args, **options))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(BlobStoreFullError):
            store.append_partial("u.3", offset=100, data=DATA[100:])
    assert store.partial_size("u.3") == 100
    assert store.append_partial("u.3", offset=100, data=DATA[100:]) == len(DATA)


class _FullFile:
    """A file on a disk with room for ten more bytes."""

    def __init__(self, file: object) -> None:
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def close(self) -> None:
        self._file.close()  # type: ignore[attr-defined]

    def write(self, data: bytes) -> int:
        self._file.write(data[:10])  # type: ignore[attr-defined]
        self._file.flush()  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_crash_left_is_forgotten_once_it_is_old_enough(tmp_path: Path) -> None:
    store = FilesystemBlobStore(tmp_path)
    kept = store.put_bytes(b"whole")
    (tmp_path / "new" / "half").write_bytes(b"ha")
    store.append_partial("rest-1", offset=0, data=b"a request that died")
    store.append_partial("upload-1", offset=0, data=b"resumed one day")
    assert store.discard_unfinished(older_than_s=3600) == 0
    for name in ("new/half", "partial/rest-1", "partial/upload-1"):
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    assert store.discard_unfinished(older_than_s=3600) == 2
    assert store.has(kept.sha256)
    assert store.partial_size("upload-1") == 15
    assert list((tmp_path / "new").iterdir()) == []
