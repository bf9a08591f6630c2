"""The seam to whatever keeps large bytes. A blob is named by a digest, so writing it twice is writing it once.

The digest is its SHA-256 or, of an uploaded vector, one of its signed chunk tree (``blobs.names``, decision 0026).

An upload that arrives in parts is a *partial* under a name of the caller's; it becomes a blob when it is finished and
may be resumed, in this process or another, by whoever opens it.
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


class PartialWriter(Protocol):
    """One stream's hold on a partial. Invariant: of two, the one that was opened later writes, and the other may not.

    One thread at a time uses it.
    """

    @property
    def held(self) -> int:
        """How many bytes the partial has, those among them that were appended here."""
        ...

    @property
    def lineage(self) -> str:
        """Names the bytes: a partial that was discarded and begun anew has another."""
        ...

    def append(self, data: Chunk) -> int:
        """Add bytes at the end; returns the new length.

        They are safe from the death of this process once ``close`` or ``finish`` returned, or ``partial_size`` counts
        them.

        Raises:
            PartialTakenOverError: another writer was opened, here or in another process.
            BlobOffsetError: the partial is a blob already.
            BlobStoreFullError: there is no room; what ``partial_size`` counted is still held.
            BlobStoreUnavailableError: the store does not answer; likewise.
        """
        ...

    def finish(self, *, sha256: str) -> StoredBlob:
        """Make the partial the blob of that name, a digest that the caller has taken over its bytes; durable on return.

        The partial stays until it is discarded, so that a caller who dies before it has recorded the blob finds the
        partial whole, and may finish it again.

        Raises:
            PartialTakenOverError, BlobStoreFullError, BlobStoreUnavailableError: as ``append``.
        """
        ...

    def close(self) -> None:
        """Let go. The bytes stay. Closing again does nothing.

        Raises:
            BlobStoreFullError, BlobStoreUnavailableError: the last bytes could not be kept.
        """
        ...


class BlobStore(Protocol):
    """Keeps blobs. Invariant: a digest that is known names exactly those bytes, whole, also after a crash."""

    def put(self, chunks: Iterable[Chunk], *, expected_sha256: str | None = None) -> StoredBlob:
        """Store the concatenation of ``chunks``, durable on return.

        Raises:
            BlobDigestMismatchError: the bytes have another digest than expected; nothing is kept.
            BlobStoreFullError: there is no room; nothing is kept.
            BlobStoreUnavailableError: the store does not answer (from every method of one that is not a folder).
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

    def open_partial(self, name: str) -> PartialWriter:
        """Continue a partial, or begin it. Whoever wrote it before is refused from now on.

        Raises:
            BlobStoreUnavailableError: the store does not answer.
        """
        ...

    def iter_partial(self, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes held so far, in pieces."""
        ...

    def discard_partial(self, name: str) -> None:
        """Forget a partial, finished or not; the blob that it became stays."""
        ...
