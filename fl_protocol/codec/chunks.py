"""A long vector as chunks: how it is cut for the wire, and one digest that lets any chunk be checked alone.

The digest is the head of an RFC 6962 tree whose leaves are the chunks, in order. All chunks are ``chunk_bytes`` long
but the last, which is what remains (never empty). A site signs this head; the coordinator, or a site that audits a
sum, checks one chunk against it by its path. Knows no ring and no segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fl_protocol.codec import merkle
from fl_protocol.errors import ProtocolError

CHUNK_BYTES = 1 << 20
"""One mebibyte: the chunk of the wire, of the mask kernel and of the tree."""

IDLE_DEADLINE_S = 600.0
"""The one deadline of a transfer, at both ends: so long may no byte move before it is given up. Ten minutes outlast a
VPN that is dialled again and a router that restarts; how long a transfer takes as a whole has no limit."""

BytesLike = bytes | bytearray | memoryview


class ChunkInvalidError(ProtocolError):
    """A chunk is not the one that the signed digest covers, or has no place in the vector."""

    code = "chunk-invalid"


def n_chunks(n_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many chunks a vector of ``n_bytes`` has."""
    return -(-n_bytes // chunk_bytes)


def iter_chunks(buffer: BytesLike, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The chunks of one contiguous buffer, as views of it."""
    if chunk_bytes < 1:
        raise ChunkInvalidError("a chunk has at least one byte", chunk_bytes=chunk_bytes)
    view = memoryview(buffer).cast("B")
    for start in range(0, len(view), chunk_bytes):
        yield view[start : start + chunk_bytes]


class ChunkTreeBuilder:
    """The tree of a vector that arrives chunk by chunk; keeps one hash a chunk and no chunk."""

    def __init__(self) -> None:
        """Start with no chunk."""
        self._leaves: list[bytes] = []
        self._range = merkle.CompactRange()

    def __len__(self) -> int:
        """How many chunks were added."""
        return len(self._leaves)

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The leaf hash of every chunk so far, in order."""
        return tuple(self._leaves)

    def add(self, chunk: BytesLike) -> bytes:
        """Add the next chunk; returns its leaf hash."""
        return self.add_leaf(merkle.leaf_hash(chunk))

    def add_leaf(self, leaf: bytes) -> bytes:
        """Add the next chunk by the leaf hash that ``add`` once returned for it (an upload that is resumed)."""
        self._range = self._range.append(leaf)
        self._leaves.append(leaf)
        return leaf

    def root(self) -> bytes:
        """The head over the chunks so far, 32 bytes."""
        return self._range.root()

    def path(self, index: int) -> tuple[bytes, ...]:
        """The inclusion path of chunk ``index``. Raises IndexError where there is none."""
        return merkle.inclusion_path(self._leaves, index)


def chunk_root(chunks: Iterable[BytesLike]) -> bytes:
    """The head of the tree over these chunks, 32 bytes."""
    return merkle.root_from_leaf_hashes(merkle.leaf_hash(chunk) for chunk in chunks)


def verify_chunk(chunk: BytesLike, *, index: int, n_chunks: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that ``chunk`` is number ``index`` of the ``n_chunks`` under the signed head ``root``.

    Raises:
        ChunkInvalidError: it is not.
    """
    if not merkle.is_included(merkle.leaf_hash(chunk), index=index, size=n_chunks, path=path, root=root):
        raise ChunkInvalidError("the chunk is not the one under the signed digest", index=index, n_chunks=n_chunks)
