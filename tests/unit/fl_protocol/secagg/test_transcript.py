from __future__ import annotations

import hashlib

import pytest

from fl_protocol.secagg.transcript import is_in_tree, tree_paths, tree_root


def leaves_of(n: int) -> list[bytes]:
    return [f"leaf {number}".encode() for number in range(n)]


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_tree_root_three_leaves_equal_the_equation_of_rfc_6962() -> None:
    a, b, c = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves_of(3))
    assert tree_root(leaves_of(3)) == node(node(a, b), c)
    assert tree_paths(leaves_of(3)) == ((b, c), (a, c), (node(a, b),))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 12, 33])
def test_is_in_tree_every_leaf_with_its_path_and_no_other_place(n: int) -> None:
    leaves = leaves_of(n)
    root, paths = tree_root(leaves), tree_paths(leaves)
    for index, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
        assert is_in_tree(leaf, path, index=index, n_leaves=n, root=root)
        assert not is_in_tree(leaf + b"x", path, index=index, n_leaves=n, root=root)
        assert not is_in_tree(leaf, (*path, bytes(32)), index=index, n_leaves=n, root=root)
        for other in range(n):
            assert (other == index) == is_in_tree(leaf, path, index=other, n_leaves=n, root=root)
