"""What is computed over a masked vector while it arrives: its SHA-256 as a blob, and the tree that its header signs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fl_protocol.codec.chunks import BytesLike, ChunkTreeBuilder


class UploadDigests:
    """Both digests of the bytes so far. Holds one hash a chunk and no chunk."""

    def __init__(self, chunk_bytes: int) -> None:
        """Begin with no byte; ``chunk_bytes`` is the length of the tree's chunks."""
        self._chunk_bytes = chunk_bytes
        self._blob = hashlib.sha256()
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
        self._blob.update(view)
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

    def finish(self) -> tuple[str, bytes]:
        """The blob's digest in hexadecimal, and the tree's root; nothing is added afterwards."""
        if self._n_open:
            self._close_chunk()
        return self._blob.hexdigest(), self._tree.root()

    def _close_chunk(self) -> None:
        self._tree.add_leaf(self._open.digest())
        self._open = _new_leaf()
        self._n_open = 0


def _new_leaf() -> hashlib._Hash:
    # RFC 6962, section 2.1: a leaf is hashed behind a zero byte.
    return hashlib.sha256(b"\x00")
