"""The Merkle tree of RFC 6962, section 2.1 (the same as RFC 9162): heads, inclusion and consistency, over hashes.

Serves two rooms: the chunks of a masked upload (``codec.chunks``) and the audit log (``audit.chain``). It must not know
what a leaf means.

    MTH({})      = SHA-256()
    MTH({d0})    = SHA-256(0x00 || d0)
    MTH(D[n])    = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])),  k = the largest power of two below n
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The head of a tree without leaves."""


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """``SHA-256(0x00 || data)``, 32 bytes; reads ``data`` without copying it."""
    digest = hashlib.sha256(b"\x00")
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 || left || right)``, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactRange:
    """What must be kept of a tree so that leaves can be added and its head told: O(log n) hashes.

    Invariant: ``frontier`` holds the heads of the perfect subtrees that the set bits of ``size`` name, largest first.
    """

    size: int = 0
    frontier: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        """Check the invariant."""
        if self.size < 0 or len(self.frontier) != self.size.bit_count():
            raise ValueError("the frontier does not belong to a tree of this size")
        if any(len(part) != HASH_BYTES for part in self.frontier):
            raise ValueError("a node of the frontier is not 32 bytes long")

    def append(self, leaf: bytes) -> CompactRange:
        """The range after one more leaf, given by its leaf hash."""
        frontier = list(self.frontier)
        node = leaf
        size = self.size
        # Every trailing one bit of the old size is a perfect subtree of the height that `node` has reached.
        while size & 1:
            node = node_hash(frontier.pop(), node)
            size >>= 1
        frontier.append(node)
        return CompactRange(size=self.size + 1, frontier=tuple(frontier))

    def root(self) -> bytes:
        """The head of the tree (MTH)."""
        if not self.frontier:
            return EMPTY_ROOT
        root = self.frontier[-1]
        for node in reversed(self.frontier[:-1]):
            root = node_hash(node, root)
        return root


class GrowingTree:
    """``CompactRange`` in place, for who reads a million leaves: the same frontier, and nothing is copied."""

    def __init__(self) -> None:
        """Start without leaves."""
        self.size = 0
        self._frontier: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """One more leaf, given by its leaf hash of 32 bytes."""
        frontier, size, node = self._frontier, self.size, leaf
        while size & 1:
            node = hashlib.sha256(b"\x01" + frontier.pop() + node).digest()
            size >>= 1
        frontier.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The head of the tree (MTH)."""
        return CompactRange(size=self.size, frontier=tuple(self._frontier)).root()


def root_from_leaf_hashes(leaves: Iterable[bytes]) -> bytes:
    """The head of the tree whose leaf hashes are ``leaves``."""
    tree = GrowingTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def _split(size: int) -> int:
    """The largest power of two below ``size`` (size >= 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """PATH(index, D[n]) of RFC 6962, 2.1.1: the siblings from the leaf up. Raises IndexError outside the tree."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} is not in a tree of {len(leaves)} leaves")
    path: list[bytes] = []
    start, stop = 0, len(leaves)
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(root_from_leaf_hashes(leaves[middle:stop]))
            stop = middle
        else:
            path.append(root_from_leaf_hashes(leaves[start:middle]))
            start = middle
    path.reverse()
    return tuple(path)


def _above_left_edge(position: int, last: int) -> tuple[int, int]:
    """Climb the levels at which a node without a right sibling is carried up as it is."""
    while not position & 1 and position != 0:
        position >>= 1
        last >>= 1
    return position, last


def is_included(leaf: bytes, *, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` proves that leaf hash ``leaf`` is number ``index`` of the tree with this size and head.

    RFC 9162, 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    node = leaf
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            position, last = _above_left_edge(position, last)
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and node == root


def consistency_path(leaves: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """PROOF(old_size, D[n]) of RFC 6962, 2.1.2. Raises IndexError unless 0 <= old_size <= n."""
    return consistency_path_of(
        lambda start, stop: root_from_leaf_hashes(leaves[start:stop]), old_size=old_size, new_size=len(leaves)
    )


def consistency_path_of(
    subtree_root: Callable[[int, int], bytes], *, old_size: int, new_size: int
) -> tuple[bytes, ...]:
    """PROOF(old_size, D[new_size]) where ``subtree_root(start, stop)`` gives MTH(D[start:stop]).

    Every subtree that is asked for is perfect, but for the last of the tree.

    Raises:
        IndexError: unless 0 <= old_size <= new_size.
    """
    if not 0 <= old_size <= new_size:
        raise IndexError(f"a tree of {new_size} leaves never had {old_size}")
    if old_size in (0, new_size):
        return ()
    path: list[bytes] = []
    start, stop = 0, new_size
    size = old_size
    is_whole = True
    while size != stop - start:
        middle = _split(stop - start)
        if size <= middle:
            path.append(subtree_root(start + middle, stop))
            stop = start + middle
        else:
            path.append(subtree_root(start, start + middle))
            start += middle
            size -= middle
            is_whole = False
    if not is_whole:
        path.append(subtree_root(start, stop))
    path.reverse()
    return tuple(path)


def is_consistent(*, old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the new tree only adds leaves to the old one. RFC 9162, 2.1.4.2."""
    if not 0 <= old_size <= new_size:
        return False
    if old_size == new_size:
        return not path and old_root == new_root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    nodes = list(path)
    if old_size & (old_size - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_node = new_node = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_node = node_hash(node, old_node)
            new_node = node_hash(node, new_node)
            position, last = _above_left_edge(position, last)
        else:
            new_node = node_hash(new_node, node)
        position >>= 1
        last >>= 1
    return last == 0 and old_node == old_root and new_node == new_root
