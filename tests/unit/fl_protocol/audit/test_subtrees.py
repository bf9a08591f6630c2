from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest

from fl_protocol.audit.subtrees import BLOCK_LEAVES, LeavesMissingError, LogSubtrees

LEAVES = [hashlib.sha256(f"leaf {number}".encode()).digest() for number in range(5 * BLOCK_LEAVES + 77)]


def mth(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as it is written there; over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def subproof(m: int, leaves: Sequence[bytes], *, is_whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(leaves):
        return [] if is_whole else [mth(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], is_whole=is_whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], is_whole=False), mth(leaves[:k])]


class Store:
    """Leaves, and how many of them were read."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.leaves = leaves
        self.n_read = 0

    def read(self, start: int, stop: int) -> Sequence[bytes]:
        found = self.leaves[start:stop]
        self.n_read += len(found)
        return found


SIZES = sorted({0, 1, 2, 255, 256, 257, 511, 512, 513, 700, 1024, 1025, 1279, 1280, 1281, len(LEAVES)})


@pytest.mark.parametrize("size", SIZES)
def test_head_is_that_of_the_definition(size: int) -> None:
    assert LogSubtrees().head(size, Store(LEAVES).read).root == mth(LEAVES[:size]).hex()


def test_proofs_are_those_of_the_definition_in_whichever_order_they_are_asked_for() -> None:
    pairs = [(old, new) for old in SIZES for new in SIZES if old <= new]
    random.Random(7).shuffle(pairs)
    subtrees, store = LogSubtrees(), Store(LEAVES)
    for old, new in pairs:
        expected = [] if old == 0 else subproof(old, LEAVES[:new], is_whole=True)
        assert list(subtrees.prove_consistency(old, new, store.read)) == expected, (old, new)


def test_second_proof_reads_no_block_again() -> None:
    subtrees, store = LogSubtrees(), Store(LEAVES)
    subtrees.prove_consistency(600, 1200, store.read)
    store.n_read = 0
    subtrees.prove_consistency(601, 1201, store.read)
    # What is no full block: at the old size and at the new one.
    assert store.n_read < 2 * BLOCK_LEAVES


@pytest.mark.parametrize(("old", "new"), [(5, 4), (-1, 4)])
def test_proof_between_sizes_that_do_not_follow_is_refused(old: int, new: int) -> None:
    with pytest.raises(IndexError):
        LogSubtrees().prove_consistency(old, new, Store(LEAVES).read)


@pytest.mark.parametrize("size", [100, 300])
def test_store_that_lacks_rows_is_told(size: int) -> None:
    with pytest.raises(LeavesMissingError):
        LogSubtrees().head(size, Store(LEAVES[: size - 1]).read)
