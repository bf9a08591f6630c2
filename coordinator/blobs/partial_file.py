"""A partial in a folder: one file that one writer at a time appends to, over all processes that share the disk.

    partial/<name>     the bytes
    owners/<name>      16 bytes that say who writes: the latest to open the partial; 16 bytes that name the partial,
                       which another has once it was discarded. Locked (flock) around each write

Safety: a writer reads the owner under the lock before each write, so that two streams of one upload cannot mix their
bytes, and none writes into a file that has become a blob.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coordinator.blobs.disk_errors import room
from coordinator.blobs.store import Chunk, StoredBlob
from coordinator.errors import BlobOffsetError, PartialTakenOverError

_TOKEN_BYTES = 16
_WRITTEN_BACK_BYTES = 8 << 20
_NOBODY = bytes(_TOKEN_BYTES)

Settle = Callable[[Path, str], StoredBlob]


class PartialFile:
    """A PartialWriter on a file. Invariant: at most one of a name holds the owner's token."""

    def __init__(self, path: Path, owner_path: Path, *, settle: Settle) -> None:
        """Open the partial and take it over."""
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._settle = settle
        self._path = path
        self._owner = _OwnerFile(owner_path)
        self._file = -1
        try:
            with room(path), self._owner.locked():
                # Under the lock: nobody can finish or discard it between the look and the taking.
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                found = os.fstat(self._file)
                self._held = found.st_size
                self._is_blob = found.st_nlink > 1
                self._sent_to_disk = found.st_size
                self._lineage = self._owner.take(self._token, is_new=found.st_size == 0)
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> int:
        """The file's length."""
        return self._held

    @property
    def lineage(self) -> str:
        """Made anew with each empty file."""
        return self._lineage

    def append(self, data: Chunk) -> int:
        """Add bytes at the end; see PartialWriter."""
        if self._is_blob:
            raise BlobOffsetError("the partial is whole already", held=self._held)
        view = memoryview(data).cast("B")
        with self._owned():
            try:
                with room(self._path):
                    done = 0
                    while done < len(view):
                        done += os.write(self._file, view[done:])
            except BaseException:
                # What was held is held: no half of a chunk stays behind it.
                os.ftruncate(self._file, self._held)
                raise
            self._held += len(view)
        self._write_back()
        return self._held

    def finish(self, *, sha256: str) -> StoredBlob:
        """Make it a blob; see PartialWriter."""
        with self._owned(), room(self._path):
            os.fsync(self._file)
            stored = self._settle(self._path, sha256)
            # From here on the file is the blob's as well, and no writer may touch it.
            self._is_blob = True
            self._owner.release()
        return stored

    def close(self) -> None:
        """Close the files."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._owner.close()

    def _write_back(self) -> None:
        """Let the disk begin with what was written, so that ``finish`` has little left to wait for."""
        n_bytes = self._held - self._sent_to_disk
        if n_bytes >= _WRITTEN_BACK_BYTES and hasattr(os, "posix_fadvise"):
            # Of what is not on the disk yet this asks that it be written, and does not wait; it stays in memory.
            os.posix_fadvise(self._file, self._sent_to_disk, n_bytes, os.POSIX_FADV_DONTNEED)
            self._sent_to_disk = self._held

    @contextmanager
    def _owned(self) -> Iterator[None]:
        with self._owner.locked():
            if self._owner.token() != self._token:
                raise PartialTakenOverError("another stream of this upload came later; ask how far it is")
            yield


def discard_partial_file(path: Path, owner_path: Path) -> None:
    """Remove a partial; its writer, if any, is refused from now on."""
    if not owner_path.exists():
        path.unlink(missing_ok=True)
        return
    owner = _OwnerFile(owner_path)
    try:
        with owner.locked():
            owner.release()
            path.unlink(missing_ok=True)
            owner_path.unlink(missing_ok=True)
    finally:
        owner.close()


class _OwnerFile:
    """Says who writes a partial, and is the lock around it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock."""
        self._lock()
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def token(self) -> bytes:
        """The one who writes; nobody, where the partial was finished or discarded."""
        return os.pread(self._file, _TOKEN_BYTES, 0)

    def take(self, token: bytes, *, is_new: bool) -> str:
        """Name the one who writes; returns the partial's lineage."""
        lineage = os.pread(self._file, _TOKEN_BYTES, _TOKEN_BYTES)
        if is_new or len(lineage) < _TOKEN_BYTES:
            lineage = secrets.token_bytes(_TOKEN_BYTES)
        os.pwrite(self._file, token + lineage, 0)
        return lineage.hex()

    def release(self) -> None:
        """Nobody writes any more."""
        os.pwrite(self._file, _NOBODY, 0)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        if self._file >= 0:
            # Not opened again: where the file was removed, the token in it is nobody's, which is what is asked.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            return
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            # The file may have been removed, and made anew, between the opening and the lock.
            with suppress(FileNotFoundError):
                if os.fstat(file).st_ino == self._path.stat().st_ino:
                    self._file = file
                    return
            os.close(file)
