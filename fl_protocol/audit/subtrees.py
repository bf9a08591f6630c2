"""The heads of one log's perfect subtrees, kept in memory so that a proof reads a few hundred leaves and not all.

A log only grows, so a subtree that is full never changes: its head is computed once from the leaves and kept. Nothing
of it is stored: what is stored are the leaves, and there is nothing beside them that could disagree with them. Knows
no storage; whoever asks brings a reader of leaf hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from fl_protocol.audit.chain import TreeHead
from fl_protocol.codec.merkle import EMPTY_ROOT, consistency_path_of, node_hash, root_from_leaf_hashes
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex

ReadLeaves = Callable[[int, int], Sequence[bytes]]
"""Leaf hashes ``start`` to ``stop`` of the log, 32 bytes each, in order."""

BLOCK_LEAVES = 256
"""The smallest subtree whose head is kept: 32 bytes for 256 rows."""
_READ_AT_ONCE = 64 * BLOCK_LEAVES


class LeavesMissingError(ProtocolError):
    """The store does not have the leaves that its size says it has."""

    code = "audit-leaves-missing"


class LogSubtrees:
    """Proofs about one log, in O(log n) once its leaves were seen. Invariant: full subtrees only.

    Not safe in two threads at once: whoever shares it locks it.
    """

    def __init__(self) -> None:
        """Know nothing yet: the first proof reads the log once."""
        self._levels: list[list[bytes]] = [[]]

    @property
    def n_leaves(self) -> int:
        """How many leaves are behind heads that are kept."""
        return len(self._levels[0]) * BLOCK_LEAVES

    def head(self, size: int, read: ReadLeaves) -> TreeHead:
        """The head that the log had at ``size``.

        Raises:
            LeavesMissingError: the reader has fewer leaves.
        """
        self._grow(size, read)
        return TreeHead(size=size, root=Sha256Hex(self._root(0, size, read).hex()))

    def prove_consistency(self, old_size: int, new_size: int, read: ReadLeaves) -> tuple[bytes, ...]:
        """PROOF(old_size, D[new_size]) of RFC 6962, 2.1.2.

        Raises:
            IndexError: unless 0 <= old_size <= new_size.
            LeavesMissingError: the reader has fewer leaves than ``new_size``.
        """
        self._grow(new_size, read)
        return consistency_path_of(
            lambda start, stop: self._root(start, stop, read), old_size=old_size, new_size=new_size
        )

    def _grow(self, size: int, read: ReadLeaves) -> None:
        """Take in every full block below ``size`` that is not known yet."""
        end = size - size % BLOCK_LEAVES
        while self.n_leaves < end:
            start = self.n_leaves
            stop = min(end, start + _READ_AT_ONCE)
            leaves = _read(read, start, stop)
            for first in range(0, stop - start, BLOCK_LEAVES):
                self._add(_perfect_root(leaves[first : first + BLOCK_LEAVES]))

    def _add(self, block: bytes) -> None:
        node = block
        for level in self._levels:
            level.append(node)
            if len(level) % 2:
                return
            node = node_hash(level[-2], level[-1])
        self._levels.append([node])

    def _root(self, start: int, stop: int, read: ReadLeaves) -> bytes:
        """MTH(D[start:stop]), out of the heads that are kept as far as they go."""
        if stop == start:
            return EMPTY_ROOT
        n_leaves = stop - start
        if n_leaves < BLOCK_LEAVES:
            return root_from_leaf_hashes(_read(read, start, stop))
        if n_leaves & (n_leaves - 1) == 0 and start % n_leaves == 0:
            level = (n_leaves // BLOCK_LEAVES).bit_length() - 1
            return self._levels[level][start // n_leaves]
        middle = start + (1 << ((n_leaves - 1).bit_length() - 1))
        return node_hash(self._root(start, middle, read), self._root(middle, stop, read))


def _read(read: ReadLeaves, start: int, stop: int) -> Sequence[bytes]:
    leaves = read(start, stop)
    if len(leaves) != stop - start:
        message = "the log lacks rows; run 'audit verify'"
        raise LeavesMissingError(message, start=start, expected=stop - start, found=len(leaves))
    return leaves


def _perfect_root(leaves: Sequence[bytes]) -> bytes:
    """The head of a perfect subtree; as ``merkle``, without a frontier a leaf."""
    sha256 = hashlib.sha256
    level = list(leaves)
    while len(level) > 1:
        pairs = iter(level)
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return level[0]
