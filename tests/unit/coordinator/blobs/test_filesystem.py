"""What is particular to the folder; what it shares with other stores is in tests/contract/blobs."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.errors import BlobDigestMismatchError, BlobStoreFullError

DATA = bytes(range(256)) * 11


@pytest.fixture
def store(tmp_path: Path) -> FilesystemBlobStore:
    return FilesystemBlobStore(tmp_path / "blobs")


def files_of(store: FilesystemBlobStore) -> list[str]:
    return sorted(path.name for path in store._root.rglob("*") if path.is_file())


def refuse(code: int):  # noqa: ANN201 # a stand-in for a system call
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_blob_is_one_private_file_under_its_digest(store: FilesystemBlobStore) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    for _ in range(2):
        store.put([DATA[:100], memoryview(DATA)[100:]])
    assert files_of(store) == [digest]
    assert (store._root / digest[:2] / digest).read_bytes() == DATA
    assert stat.S_IMODE(store._root.stat().st_mode) == 0o700


def test_what_is_not_kept_leaves_no_file(store: FilesystemBlobStore) -> None:
    with pytest.raises(BlobDigestMismatchError):
        store.put_bytes(DATA, expected_sha256="0" * 64)
    assert files_of(store) == []


def test_finished_and_discarded_partial_leaves_the_blob_alone(store: FilesystemBlobStore) -> None:
    writer = store.open_partial("u.1")
    writer.append(DATA)
    digest = writer.finish(sha256=hashlib.sha256(DATA).hexdigest()).sha256
    writer.close()
    store.discard_partial("u.1")
    assert files_of(store) == [digest]


def test_digests_held_are_listed_without_strangers(store: FilesystemBlobStore) -> None:
    held = store.put_bytes(DATA).sha256
    (store._root / held[:2] / "notes.txt").write_text("not a blob")
    (store._root / held[:2] / ("f" * 64)).write_text("in the wrong folder")
    assert list(store.iter_digests()) == [held]


def test_free_bytes_are_those_of_the_file_system(store: FilesystemBlobStore) -> None:
    free = store.free_bytes()
    assert free is not None
    assert 0 <= free <= shutil.disk_usage(store._root).total


def test_full_disk_is_a_typed_error_and_loses_nothing(
    store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC))
        with pytest.raises(BlobStoreFullError):
            store.put_bytes(DATA)
    assert files_of(store) == []
    assert store.put_bytes(DATA).n_bytes == len(DATA)


def test_full_disk_has_no_room_for_a_blobs_folder_either(
    store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    writer = store.open_partial("u.2")
    writer.append(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse(errno.ENOSPC))
        with pytest.raises(BlobStoreFullError):
            store.put_bytes(DATA)
        with pytest.raises(BlobStoreFullError):
            writer.finish(sha256=digest)
    assert files_of(store) == ["u.2", "u.2"], "the partial and who owns it"
    assert writer.finish(sha256=digest).n_bytes == len(DATA)
    writer.close()
    assert store.read(digest) == DATA


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_keeps_what_a_partial_held_and_no_half_of_a_chunk(
    store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    writer = store.open_partial("u.3")
    writer.append(DATA[:100])
    real_write, n_writes = os.write, 0

    def write(file: int, data: memoryview) -> int:
        nonlocal n_writes
        n_writes += 1
        if n_writes > 1:
            raise OSError(code, os.strerror(code))
        return real_write(file, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(BlobStoreFullError):
            writer.append(DATA[100:])
    assert (writer.held, store.partial_size("u.3")) == (100, 100)
    assert writer.append(DATA[100:]) == len(DATA)
    assert b"".join(store.iter_partial("u.3")) == DATA
    writer.close()


def test_crash_between_link_and_folder_sync_leaves_a_partial_that_can_be_finished_again(
    store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    writer = store.open_partial("u.4")
    writer.append(DATA)
    real_fsync = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise KeyboardInterrupt
        real_fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(sha256=digest)
    writer.close()
    # The power comes back, with or without the blob's name on the disk.
    for is_named in (True, False):
        if not is_named:
            store.delete(digest)
        again = FilesystemBlobStore(store._root).open_partial("u.4")
        assert again.held == len(DATA)
        again.finish(sha256=digest)
        again.close()
        assert store.read(digest) == DATA


def test_file_system_without_hard_links_copies(store: FilesystemBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    digest = hashlib.sha256(DATA).hexdigest()
    writer = store.open_partial("u.5")
    writer.append(DATA)
    assert writer.finish(sha256=digest).n_bytes == len(DATA)
    writer.close()
    assert store.read(digest) == DATA
    assert store.partial_size("u.5") == len(DATA)


def test_limit_of_the_operating_system_is_a_full_store_too(tmp_path: Path) -> None:
    """In a process of its own, because the limit is the process's: files of at most 100,000 bytes."""
    program = textwrap.dedent(f"""
        import hashlib, resource, signal
        from pathlib import Path
        from coordinator.blobs.filesystem import FilesystemBlobStore
        from coordinator.errors import BlobStoreFullError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        store = FilesystemBlobStore(Path({str(tmp_path / "blobs")!r}))
        writer = store.open_partial("u.1")
        writer.append(bytes(60_000))
        for call in (lambda: writer.append(bytes(60_000)), lambda: store.put_bytes(bytes(160_000))):
            try:
                call()
            except BlobStoreFullError:
                print("full", writer.held, store.partial_size("u.1"), len(list(store.iter_digests())))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.append(bytes(60_000))
        print(writer.finish(sha256=hashlib.sha256(bytes(120_000)).hexdigest()).n_bytes)
        writer.close()
    """)
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.split("\n")[:3] == ["full 60000 60000 0", "full 60000 60000 0", "120000"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_what_a_crash_left_is_forgotten_once_it_is_old_enough(tmp_path: Path) -> None:
    store = FilesystemBlobStore(tmp_path)
    kept = store.put_bytes(b"whole")
    (tmp_path / "new" / "half").write_bytes(b"ha")
    for name in ("rest-1", "upload-1"):
        writer = store.open_partial(name)
        writer.append(b"resumed one day")
        writer.close()
    assert store.discard_unfinished(older_than_s=3600) == 0
    for name in ("new/half", "partial/rest-1", "partial/upload-1"):
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    assert store.discard_unfinished(older_than_s=3600) == 2
    assert store.has(kept.sha256)
    assert (store.partial_size("rest-1"), store.partial_size("upload-1")) == (0, 15)
    assert files_of(store) == sorted([kept.sha256, "upload-1", "upload-1"])
