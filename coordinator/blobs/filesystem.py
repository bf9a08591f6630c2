"""Blobs in a folder: ``<root>/<first two characters>/<digest>``; partials in ``partial``, unfinished ones in ``new``.

A blob appears under its digest by an atomic rename or link after its bytes are on the disk, and the folder is synced
after it: a name that exists names whole bytes, at any crash. Several processes may share the folder, on one machine or
on a network file system with locks (NFS 4 has them).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from coordinator.blobs.disk_errors import room
from coordinator.blobs.partial_file import PartialFile, discard_partial_file
from coordinator.blobs.store import CHUNK_BYTES, UNRESUMED, Chunk, StoredBlob
from coordinator.errors import BlobDigestMismatchError, BlobNotFoundError, BlobOffsetError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_PARTIAL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,180}")
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


class FilesystemBlobStore:
    """A BlobStore in one folder of this machine, for its owner only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._new = root / "new"
        self._partial = root / "partial"
        self._owners = root / "owners"
        for folder in (root, self._new, self._partial, self._owners):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, chunks: Iterable[Chunk], *, expected_sha256: str | None = None) -> StoredBlob:
        """Store the concatenation of ``chunks``; see BlobStore."""
        path = self._new / secrets.token_hex(16)
        digest = hashlib.sha256()
        n_bytes = 0
        try:
            with room(path), path.open("xb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                    n_bytes += memoryview(chunk).nbytes
                file.flush()
                os.fsync(file.fileno())
            sha256 = digest.hexdigest()
            _check_digest(sha256, expected_sha256)
            self._settle(path, sha256)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StoredBlob(sha256=sha256, n_bytes=n_bytes)

    def put_bytes(self, data: Chunk, *, expected_sha256: str | None = None) -> StoredBlob:
        """``put`` of one piece."""
        return self.put([data], expected_sha256=expected_sha256)

    def has(self, sha256: str) -> bool:
        """Whether the blob is here."""
        return _DIGEST.fullmatch(sha256) is not None and self._path(sha256).is_file()

    def size(self, sha256: str) -> int:
        """Its length in bytes."""
        return self._found(sha256).stat().st_size

    def read(self, sha256: str) -> bytes:
        """All of it."""
        return self._found(sha256).read_bytes()

    def iter_chunks(self, sha256: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Its bytes from ``offset`` on, in pieces."""
        path = self._found(sha256)
        if not 0 <= offset <= path.stat().st_size:
            raise BlobOffsetError("the offset is not inside the blob", sha256=sha256, offset=offset)
        return _chunks_of(path, offset=offset, chunk_bytes=chunk_bytes)

    def iter_views(self, sha256: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """Its bytes in pieces, through one buffer that is used again for each."""
        return _views_of(self._found(sha256), chunk_bytes=chunk_bytes)

    def delete(self, sha256: str) -> None:
        """Forget a blob."""
        self._path(sha256).unlink(missing_ok=True)

    def iter_digests(self) -> Iterator[str]:
        """The digests held, a folder at a time; see BlobStore."""
        for folder in _names_in(self._root, _SHARD):
            for sha256 in _names_in(self._root / folder, _DIGEST):
                if sha256.startswith(folder):
                    yield sha256

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Forget what a crash left in ``new``; see BlobStore. Goes by the file system's own clock."""
        marker = self._new / f"now-{secrets.token_hex(8)}"
        marker.touch(mode=0o600)
        newest = marker.stat().st_mtime - older_than_s
        marker.unlink()
        unfinished = [path for path in self._new.iterdir() if _is_older(path, newest)]
        for path in unfinished:
            path.unlink(missing_ok=True)
        unresumed = [path for path in self._partial.glob(f"{UNRESUMED}*") if _is_older(path, newest)]
        for path in unresumed:
            self.discard_partial(path.name)
        return len(unfinished) + len(unresumed)

    def free_bytes(self) -> int | None:
        """What the file system gives an ordinary user."""
        room = os.statvfs(self._root)
        return room.f_bavail * room.f_frsize

    def partial_size(self, name: str) -> int:
        """How many bytes of this partial are held."""
        with suppress(FileNotFoundError):
            return self._partial_path(name).stat().st_size
        return 0

    def open_partial(self, name: str) -> PartialFile:
        """Continue a partial; see BlobStore."""
        return PartialFile(self._partial_path(name), self._owners / name, settle=self._link)

    def iter_partial(self, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes held so far, in pieces."""
        path = self._partial_path(name)
        return _chunks_of(path, offset=0, chunk_bytes=chunk_bytes) if path.exists() else iter(())

    def discard_partial(self, name: str) -> None:
        """Forget a partial; see BlobStore."""
        discard_partial_file(self._partial_path(name), self._owners / name)

    def _link(self, path: Path, sha256: str) -> StoredBlob:
        target = self._path(sha256)
        n_bytes = path.stat().st_size
        try:
            with room(target):
                target.parent.mkdir(mode=0o700, exist_ok=True)
                os.link(path, target)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._settle(self._copied(path), sha256)
            return StoredBlob(sha256=sha256, n_bytes=n_bytes)
        _sync_folder(target.parent)
        _sync_folder(self._root)
        return StoredBlob(sha256=sha256, n_bytes=n_bytes)

    def _copied(self, path: Path) -> Path:
        copy = self._new / secrets.token_hex(16)
        try:
            with room(copy), copy.open("xb") as file:
                for chunk in _chunks_of(path, offset=0, chunk_bytes=CHUNK_BYTES):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def _settle(self, path: Path, sha256: str) -> None:
        target = self._path(sha256)
        with room(target):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            path.replace(target)
        _sync_folder(target.parent)
        _sync_folder(self._root)

    def _path(self, sha256: str) -> Path:
        # Safety: a name that is no digest never becomes a path.
        if _DIGEST.fullmatch(sha256) is None:
            raise BlobNotFoundError("a blob is named by 64 hexadecimal characters", sha256=sha256[:80])
        return self._root / sha256[:2] / sha256

    def _found(self, sha256: str) -> Path:
        path = self._path(sha256)
        if not path.is_file():
            raise BlobNotFoundError("no blob has this digest", sha256=sha256)
        return path

    def _partial_path(self, name: str) -> Path:
        if _PARTIAL_NAME.fullmatch(name) is None:
            raise BlobNotFoundError("a partial's name is lower-case letters, digits, dots and hyphens", name=name[:80])
        return self._partial / name


def _is_older(path: Path, newest: float) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime <= newest
    return False


def _check_digest(found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise BlobDigestMismatchError("the bytes do not have the announced digest", expected=expected[:64], found=found)


def _names_in(folder: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) is not None:
                yield entry.name


def _chunks_of(path: Path, *, offset: int, chunk_bytes: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(chunk_bytes):
            yield chunk


def _views_of(path: Path, *, chunk_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(chunk_bytes))
    with path.open("rb", buffering=0) as file:
        while n_read := file.readinto(buffer):
            yield buffer[:n_read]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
