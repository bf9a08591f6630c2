from __future__ import annotations

import hashlib

import pytest

from fl_protocol.codec.merkle import (
    EMPTY_ROOT,
    CompactRange,
    consistency_path,
    inclusion_path,
    is_consistent,
    is_included,
    leaf_hash,
    root_from_leaf_hashes,
)

# The leaves and heads with which Certificate Transparency implementations test RFC 6962.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as it is written there; over the data."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], *, is_whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(leaves):
        return [] if is_whole else [naive_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], is_whole=is_whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], is_whole=False), naive_root(leaves[:k])]


def hashes(leaves: list[bytes]) -> list[bytes]:
    return [leaf_hash(leaf) for leaf in leaves]


@pytest.mark.parametrize("size", range(9))
def test_root_of_the_ct_leaves_is_the_published_one(size: int) -> None:
    assert root_from_leaf_hashes(hashes(CT_LEAVES[:size])).hex() == CT_ROOTS[size]


def test_root_of_any_size_is_that_of_the_recursive_definition() -> None:
    leaves = [bytes([number]) for number in range(70)]
    for size in range(71):
        assert root_from_leaf_hashes(hashes(leaves[:size])) == naive_root(leaves[:size])


def test_root_of_no_leaf_is_the_hash_of_nothing() -> None:
    assert CompactRange().root() == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_inclusion_path_of_every_leaf_is_that_of_the_definition_and_verifies() -> None:
    leaves = [bytes([number]) for number in range(20)]
    for size in range(1, 21):
        root = naive_root(leaves[:size])
        for index in range(size):
            path = inclusion_path(hashes(leaves[:size]), index)
            assert list(path) == naive_path(index, leaves[:size])
            assert is_included(leaf_hash(leaves[index]), index=index, size=size, path=path, root=root)


def test_inclusion_path_that_is_altered_in_any_way_fails() -> None:
    leaves = [bytes([number]) for number in range(13)]
    root = naive_root(leaves)
    for index in range(13):
        leaf = leaf_hash(leaves[index])
        path = list(inclusion_path(hashes(leaves), index))
        assert not is_included(leaf_hash(b"else"), index=index, size=13, path=path, root=root)
        assert not is_included(leaf, index=index, size=13, path=path[:-1], root=root)
        assert not is_included(leaf, index=index, size=13, path=[*path, root], root=root)
        assert not is_included(leaf, index=(index + 1) % 13, size=13, path=path, root=root)
        assert not is_included(leaf, index=index, size=13, path=path, root=bytes(32))
        for place in range(len(path)):
            wrong = [*path[:place], bytes(32), *path[place + 1 :]]
            assert not is_included(leaf, index=index, size=13, path=wrong, root=root)


@pytest.mark.parametrize("index", [-1, 13, 100])
def test_inclusion_of_a_leaf_outside_the_tree_is_refused(index: int) -> None:
    leaves = hashes([bytes([number]) for number in range(13)])
    assert not is_included(leaves[0], index=index, size=13, path=(), root=bytes(32))
    with pytest.raises(IndexError):
        inclusion_path(leaves, index)


def test_consistency_path_of_every_pair_is_that_of_the_definition_and_verifies() -> None:
    leaves = [bytes([number]) for number in range(20)]
    for new in range(1, 21):
        for old in range(1, new + 1):
            path = consistency_path(hashes(leaves[:new]), old)
            assert list(path) == naive_subproof(old, leaves[:new], is_whole=True)
            old_root, new_root = naive_root(leaves[:old]), naive_root(leaves[:new])
            assert is_consistent(old_size=old, old_root=old_root, new_size=new, new_root=new_root, path=path)


def test_consistency_with_an_altered_log_fails_for_every_path() -> None:
    leaves = [bytes([number]) for number in range(12)]
    altered = [*leaves[:3], b"altered", *leaves[4:]]
    for old in range(4, 12):
        old_root, new_root = naive_root(leaves[:old]), naive_root(altered)
        for source in (leaves, altered):
            path = consistency_path(hashes(source), old)
            assert not is_consistent(old_size=old, old_root=old_root, new_size=12, new_root=new_root, path=path)


def test_consistency_of_equal_sizes_needs_equal_roots_and_no_path() -> None:
    root = naive_root([b"a"])
    assert is_consistent(old_size=1, old_root=root, new_size=1, new_root=root, path=())
    assert not is_consistent(old_size=1, old_root=root, new_size=1, new_root=bytes(32), path=())
    assert not is_consistent(old_size=1, old_root=root, new_size=1, new_root=root, path=(root,))


def test_consistency_of_the_empty_log_needs_its_root() -> None:
    root = naive_root([b"a", b"b"])
    assert is_consistent(old_size=0, old_root=EMPTY_ROOT, new_size=2, new_root=root, path=())
    assert not is_consistent(old_size=0, old_root=bytes(32), new_size=2, new_root=root, path=())


def test_consistency_of_a_shrunken_log_fails() -> None:
    old, new = naive_root([b"a", b"b"]), naive_root([b"a"])
    assert not is_consistent(old_size=2, old_root=old, new_size=1, new_root=new, path=())
    with pytest.raises(IndexError):
        consistency_path([leaf_hash(b"a")], 2)


@pytest.mark.parametrize(("size", "frontier"), [(1, ()), (2, (b"x" * 32, b"y" * 32)), (1, (b"short",)), (-1, ())])
def test_compact_range_with_a_frontier_of_another_size_is_refused(size: int, frontier: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="frontier"):
        CompactRange(size=size, frontier=frontier)
