"""Where a download goes while it is on its way: memory for a small one, a file named by its digest for a large one."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_protocol.codec import merkle
from fl_protocol.codec.chunks import CHUNK_BYTES
from site_agent.errors import BlobInvalidError, ChunkInvalidError, DownloadDiskError
from site_agent.state.private_files import make_private_folder

_KEPT_S = 7 * 86400
DownloadedBytes = bytes | memoryview


ChunkBytes = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDigests:
    """What the coordinator says of a chunk, each empty where it does not.

    ``leaf_sha256`` is SHA-256(0x00 || chunk), ``prefix_sha256`` that of the blob up to the chunk's end.
    """

    leaf_sha256: bytes = b""
    prefix_sha256: bytes = b""


class DownloadSink(Protocol):
    """Takes the chunks of one blob in order."""

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        ...

    def add(self, data: ChunkBytes, said: ChunkDigests) -> None:
        """Keep one chunk.

        Raises:
            ChunkInvalidError: it is not what its digest says; it is not kept.
            BlobInvalidError: so it is, or what an earlier process left of the blob is not the blob's.
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


class _RunningDigest:
    """The SHA-256 of the chunks so far. Each chunk is hashed once, unless only its leaf came with it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._is_known_good = True

    def take_unverified(self, data: ChunkBytes) -> None:
        """Continue with bytes that another process left."""
        self._digest.update(data)
        self._is_known_good = False

    def after(self, data: ChunkBytes, said: ChunkDigests, *, offset: int) -> hashlib._Hash:
        """The digest behind this chunk, which is not taken yet. Raises ChunkInvalidError, BlobInvalidError."""
        following = self._digest.copy()
        following.update(data)
        if said.prefix_sha256:
            if following.digest() != said.prefix_sha256:
                if not self._is_known_good:
                    message = "what is held of a blob is not what the coordinator sent; it is asked for anew"
                    raise BlobInvalidError(message, offset=offset)
                raise ChunkInvalidError("a chunk was altered on its way; it is asked for again", offset=offset)
            self._is_known_good = True
        elif said.leaf_sha256 and merkle.leaf_hash(data) != said.leaf_sha256:
            raise ChunkInvalidError("a chunk was altered on its way; it is asked for again", offset=offset)
        return following

    def take(self, following: hashlib._Hash) -> None:
        """The chunk is kept."""
        self._digest = following

    def hexdigest(self) -> str:
        """Of all that is kept."""
        return self._digest.hexdigest()


class MemorySink:
    """A small blob, in memory."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._digest = _RunningDigest()

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        return len(self._data)

    def add(self, data: ChunkBytes, said: ChunkDigests) -> None:
        """Keep one chunk."""
        following = self._digest.after(data, said, offset=len(self._data))
        self._data += data
        self._digest.take(following)

    def sha256(self) -> str:
        """The digest of what is kept."""
        return self._digest.hexdigest()

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
    found out by the next chunk's digest, or at the end like any other wrong byte.
    """

    def __init__(self, folder: Path, sha256: str) -> None:
        make_private_folder(folder)
        _sweep(folder)
        self._path = folder / f"{sha256}.part"
        self._lock = threading.Lock()
        self._digest = _RunningDigest()
        self._held = 0
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while data := os.read(self._file, CHUNK_BYTES):
            self._digest.take_unverified(data)
            self._held += len(data)

    @property
    def held(self) -> int:
        """How many bytes are in the file."""
        return self._held

    def add(self, data: ChunkBytes, said: ChunkDigests) -> None:
        """Write one chunk."""
        with self._lock:
            if self._file < 0:
                return
            following = self._digest.after(data, said, offset=self._held)
            try:
                done = 0
                while done < len(data):
                    done += os.pwrite(self._file, memoryview(data)[done:], self._held + done)
            except OSError as error:
                os.ftruncate(self._file, self._held)
                message = "a download cannot be written to the state folder; is the disk full?"
                raise DownloadDiskError(message, folder=str(self._path.parent), cause=error.strerror) from error
            self._digest.take(following)
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
