"""The seam to whatever keeps large bytes. A blob is named by its SHA-256, so writing it twice is writing it once.

An upload that arrives in parts is a *partial* under a name of the caller's; it becomes a blob when it is finished and
may be resumed by whoever learns how many of its bytes are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

CHUNK_BYTES = 1 << 20
UNRESUMED = "rest-"
"""How the names of partials begin that die with the request that made them."""
Chunk = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """What was stored."""

    sha256: str
    n_bytes: int


class BlobStore(Protocol):
    """Keeps blobs. Invariant: a digest that is known names exactly those bytes, whole, also after a crash."""

    def put(self, chunks: Iterable[Chunk], *, expected_sha256: str | None = None) -> StoredBlob:
        """Store the concatenation of ``chunks``, durable on return.

        Raises:
            BlobDigestMismatchError: the bytes have another digest than expected; nothing is kept.
            BlobStoreFullError: there is no room; nothing is kept.
        """
        ...

    def put_bytes(self, data: Chunk, *, expected_sha256: str | None = None) -> StoredBlob:
        """``put`` of one piece."""
        ...

    def has(self, sha256: str) -> bool:
        """Whether the blob is here."""
        ...

    def size(self, sha256: str) -> int:
        """Its length in bytes. Raises BlobNotFoundError."""
        ...

    def read(self, sha256: str) -> bytes:
        """All of it. Raises BlobNotFoundError."""
        ...

    def iter_chunks(self, sha256: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Its bytes from ``offset`` on, in pieces. Raises BlobNotFoundError before the first."""
        ...

    def iter_views(self, sha256: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """As ``iter_chunks`` from the start, but each view is valid only until the next is asked for."""
        ...

    def delete(self, sha256: str) -> None:
        """Forget a blob; one that is not here is forgotten already."""
        ...

    def iter_digests(self) -> Iterator[str]:
        """The digests of all blobs held, lazily and in no order; partials are not among them.

        A blob that is stored or deleted meanwhile may be named or not.
        """
        ...

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Forget what a crash left of blobs that were being stored, once it is that old; returns how many there were.

        Of the partials only those count whose name begins with ``UNRESUMED``: whoever named another resumes it.
        """
        ...

    def free_bytes(self) -> int | None:
        """How many more bytes fit; None where that cannot be known."""
        ...

    def partial_size(self, name: str) -> int:
        """How many bytes of this partial are held; 0 where there is none."""
        ...

    def append_partial(self, name: str, *, offset: int, data: Chunk) -> int:
        """Add bytes at the end; returns the new length.

        Raises:
            BlobOffsetError: ``offset`` is not what is held.
            BlobStoreFullError: there is no room; what was held is still held.
        """
        ...

    def iter_partial(self, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes held so far, in pieces."""
        ...

    def finish_partial(self, name: str, *, sha256: str) -> StoredBlob:
        """Turn the partial into the blob of that digest (taken by the caller over ``iter_partial``); durable on return.

        Doing it again, once the blob is there, is the same.

        Raises:
            BlobNotFoundError: neither the partial nor the blob is here.
        """
        ...

    def discard_partial(self, name: str) -> None:
        """Forget a partial."""
        ...
