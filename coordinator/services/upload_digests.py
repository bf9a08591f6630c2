"""What is computed over a masked vector while it arrives: the tree that its header signs, one pass over the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from coordinator.blobs.names import name_from_chunk_root
from fl_protocol.codec.chunks import CHUNK_BYTES, BytesLike, ChunkTreeBuilder


class UploadDigests:
    """The tree of the bytes so far. Holds one hash a chunk and no chunk.

    Where a run's tree has chunks of another length than 1 MiB, the blob's name is the SHA-256 of its bytes, and is
    computed as well: a name has to tell how it is verified.
    """

    def __init__(self, chunk_bytes: int) -> None:
        """Begin with no byte; ``chunk_bytes`` is the length of the tree's chunks."""
        self._chunk_bytes = chunk_bytes
        self._plain = None if chunk_bytes == CHUNK_BYTES else hashlib.sha256()
        self._tree = ChunkTreeBuilder()
        self._open = _new_leaf()
        self._n_open = 0
        self.n_bytes = 0

    @classmethod
    def of(cls, parts: Iterable[BytesLike], *, chunk_bytes: int) -> UploadDigests:
        """The digests of bytes that are held already."""
        digests = cls(chunk_bytes)
        for part in parts:
            digests.add(part)
        return digests

    def add(self, data: BytesLike, *, leaf: bytes | None = None) -> None:
        """Continue with the next bytes.

        Args:
            data: any number of bytes.
            leaf: their leaf hash, where the caller has it; it is used where the bytes are a chunk of the tree.
        """
        view = memoryview(data).cast("B")
        if self._plain is not None:
            self._plain.update(view)
        self.n_bytes += len(view)
        if leaf is not None and self._n_open == 0 and len(view) == self._chunk_bytes:
            self._tree.add_leaf(leaf)
            return
        while view:
            piece = view[: self._chunk_bytes - self._n_open]
            self._open.update(piece)
            self._n_open += len(piece)
            view = view[len(piece) :]
            if self._n_open == self._chunk_bytes:
                self._close_chunk()

    @property
    def wire_tree(self) -> ChunkTreeBuilder | None:
        """The tree over chunks as they travel, once it is finished; None where the run's own has others."""
        return self._tree if self._plain is None else None

    def finish(self) -> tuple[str, bytes]:
        """The blob's name, and the tree's root; nothing is added afterwards."""
        if self._n_open:
            self._close_chunk()
        root = self._tree.root()
        name = name_from_chunk_root(root, n_bytes=self.n_bytes) if self._plain is None else self._plain.hexdigest()
        return name, root

    def _close_chunk(self) -> None:
        self._tree.add_leaf(self._open.digest())
        self._open = _new_leaf()
        self._n_open = 0


def _new_leaf() -> hashlib._Hash:
    # RFC 6962, section 2.1: a leaf is hashed behind a zero byte.
    return hashlib.sha256(b"\x00")
