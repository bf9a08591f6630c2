"""The two names that a blob may have: the SHA-256 of its bytes, or one made of the chunk tree that a site signed.

An uploaded vector is hashed once, as the leaves of the tree under its signed root; a second pass over it for a name
would cost as much again (decision 0026). Either name is a digest by which the bytes can be verified, written as 64
hexadecimal characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from coordinator.blobs.store import Chunk
from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder
from fl_protocol.packing import pack, u64

_DOMAIN = b"wardround/blob/chunk-tree/v1"


def name_from_chunk_root(root: bytes, *, n_bytes: int) -> str:
    """A vector's name by the head of the tree of its chunks of 1 MiB: ``SHA-256(pack(domain, u64(length), root))``.

    Safety: a root alone is the SHA-256 of the 65 bytes of the tree's uppermost node, which could be a blob too; what is
    hashed here begins as no blob does.
    """
    return hashlib.sha256(pack(_DOMAIN, u64(n_bytes), root)).hexdigest()


class BlobNameDigest:
    """Tells whether bytes that pass by are the blob of a name, of whichever kind the name is."""

    def __init__(self) -> None:
        """Begin with no byte."""
        self._plain = hashlib.sha256()
        self._tree = ChunkTreeBuilder()
        self._rest = bytearray()
        self._n_bytes = 0

    def update(self, data: Chunk) -> None:
        """Continue with the next bytes, however many."""
        view = memoryview(data).cast("B")
        self._plain.update(view)
        self._n_bytes += len(view)
        self._rest += view
        while len(self._rest) >= CHUNK_BYTES:
            self._tree.add(self._rest[:CHUNK_BYTES])
            del self._rest[:CHUNK_BYTES]

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, seen as they pass."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk

    def is_of(self, name: str) -> bool:
        """Whether all the bytes so far, and nothing more, are the blob of that name. Nothing is added afterwards."""
        if name == self._plain.hexdigest():
            return True
        if self._rest:
            self._tree.add(self._rest)
            self._rest = bytearray()
        return name == name_from_chunk_root(self._tree.root(), n_bytes=self._n_bytes)
