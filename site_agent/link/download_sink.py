"""Where a download goes while it is on its way: memory for a small one, a file named by its digest for a large one."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fl_protocol.codec import merkle
from fl_protocol.codec.chunks import CHUNK_BYTES
from site_agent.errors import ChunkInvalidError, DownloadDiskError
from site_agent.state.private_files import make_private_folder

_KEPT_S = 7 * 86400
DownloadedBytes = bytes | memoryview


class DownloadSink(Protocol):
    """Takes the chunks of one blob in order."""

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        ...

    def add(self, data: bytes, leaf_sha256: bytes) -> None:
        """Keep one chunk.

        Raises:
            ChunkInvalidError: it does not have the digest that came with it (empty: none came); it is not kept.
            DownloadDiskError: it cannot be written.
        """
        ...

    def sha256(self) -> str:
        """The digest of what is kept, in hexadecimal."""
        ...

    def take(self) -> DownloadedBytes:
        """The bytes; called once, when all are there."""
        ...

    def discard(self) -> None:
        """Throw away what is kept."""
        ...

    def close(self) -> None:
        """Let go; what is kept in a file stays for the next attempt."""
        ...


class MemorySink:
    """A small blob, in memory."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        return len(self._data)

    def add(self, data: bytes, leaf_sha256: bytes) -> None:
        """Keep one chunk."""
        _check_leaf(data, leaf_sha256, offset=len(self._data))
        self._data += data

    def sha256(self) -> str:
        """The digest of what is kept."""
        return hashlib.sha256(self._data).hexdigest()

    def take(self) -> bytes:
        """The bytes."""
        return bytes(self._data)

    def discard(self) -> None:
        """Forget them."""
        self._data.clear()

    def close(self) -> None:
        """Nothing to let go."""


class FileSink:
    """A large blob, in ``<folder>/<sha256>.part``. Invariant: the digest so far is that of the file's bytes.

    After a restart the file is read once to take the digest again: what a crash left of it may be anything, and is
    found out at the end like any other wrong byte.
    """

    def __init__(self, folder: Path, sha256: str) -> None:
        make_private_folder(folder)
        _sweep(folder)
        self._path = folder / f"{sha256}.part"
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._held = 0
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while data := os.read(self._file, CHUNK_BYTES):
            self._digest.update(data)
            self._held += len(data)

    @property
    def held(self) -> int:
        """How many bytes are in the file."""
        return self._held

    def add(self, data: bytes, leaf_sha256: bytes) -> None:
        """Write one chunk."""
        _check_leaf(data, leaf_sha256, offset=self._held)
        with self._lock:
            if self._file < 0:
                return
            try:
                done = 0
                while done < len(data):
                    done += os.pwrite(self._file, memoryview(data)[done:], self._held + done)
            except OSError as error:
                os.ftruncate(self._file, self._held)
                message = "a download cannot be written to the state folder; is the disk full?"
                raise DownloadDiskError(message, folder=str(self._path.parent), cause=error.strerror) from error
            self._digest.update(data)
            self._held += len(data)

    def sha256(self) -> str:
        """The digest of what is in the file."""
        return self._digest.hexdigest()

    def take(self) -> DownloadedBytes:
        """The file as bytes; its name is removed, and its room is free when the bytes are let go."""
        if not self._held:
            self._path.unlink(missing_ok=True)
            return b""
        mapped = mmap.mmap(self._file, self._held, access=mmap.ACCESS_READ)
        self._path.unlink(missing_ok=True)
        return memoryview(mapped)

    def discard(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def _sweep(folder: Path) -> None:
    """Remove what nobody has come back for: the download of a run that ended meanwhile."""
    oldest = time.time() - _KEPT_S
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _check_leaf(data: bytes, leaf_sha256: bytes, *, offset: int) -> None:
    if leaf_sha256 and merkle.leaf_hash(data) != leaf_sha256:
        raise ChunkInvalidError("a chunk was altered on its way; it is asked for again", offset=offset)
