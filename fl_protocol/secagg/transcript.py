"""What binds the messages of one exchange to each other: tagged digests of sets, and trees over lists.

``H(tag, fields) = SHA-256(pack("SA1/" + tag, fields))``. Sets are hashed in the order of the sites' names, over bodies
and not over signatures: a second valid signature of the same body changes nothing. Trees are those of RFC 6962, 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fl_protocol.codec import merkle
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, tagged_digest, u32

DIGEST_BYTES = 32


def hash_manifest(body: bytes, *, exchange_index: int, exchange_attempt: int) -> bytes:
    """``hM``: the manifest that the coordinator signed, and which exchange of its round is meant."""
    return tagged_digest("manifest", body, u32(exchange_index), u32(exchange_attempt))


def hash_cohort(bodies: Iterable[bytes]) -> bytes:
    """``hU1``: the M1 bodies of the cohort, in the order of the sites' names."""
    return tagged_digest("U1", *bodies)


def hash_sharers(h_cohort: bytes, bodies: Iterable[bytes]) -> bytes:
    """``hU2``: the M3 header bodies of those that dealt shares, in the order of the sites' names."""
    return tagged_digest("U2", h_cohort, *bodies)


def hash_survivors(h_sharers: bytes, bodies: Iterable[bytes]) -> bytes:
    """``hU3``: the M5 header bodies of those that uploaded, in the order of the sites' names."""
    return tagged_digest("U3", h_sharers, *bodies)


def commit_to_b(b: bytes, *, site: SiteId, h_manifest: bytes) -> bytes:
    """``beta``: what a site's self-mask secret must match when it is put together again."""
    return tagged_digest("bcommit", site.encode(), h_manifest, b)


def commit_to_shares(rho_share: bytes, b_share: bytes, *, dealer: SiteId, holder: SiteId) -> bytes:
    """``kappa``: 64 bytes, one digest for each of the two shares that a dealer gives a holder."""
    return commit_to_rho_share(rho_share, dealer=dealer, holder=holder) + commit_to_b_share(
        b_share, dealer=dealer, holder=holder
    )


def commit_to_rho_share(share: bytes, *, dealer: SiteId, holder: SiteId) -> bytes:
    """The first half of ``kappa``."""
    return tagged_digest("share", dealer.encode(), holder.encode(), b"r", share)


def commit_to_b_share(share: bytes, *, dealer: SiteId, holder: SiteId) -> bytes:
    """The second half of ``kappa``."""
    return tagged_digest("share", dealer.encode(), holder.encode(), b"b", share)


def sealing_info(h_cohort: bytes, *, dealer: SiteId, holder: SiteId) -> bytes:
    """The HPKE info of one sealed pair of shares: a ciphertext of another pair or exchange does not open."""
    return pack(b"SA1/share", h_cohort, dealer.encode(), holder.encode())


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, 2.1, over one leaf or more."""
    return merkle.root_from_leaf_hashes(merkle.leaf_hash(leaf) for leaf in leaves)


def tree_paths(leaves: Sequence[bytes]) -> tuple[tuple[bytes, ...], ...]:
    """The inclusion path of every leaf (RFC 6962, 2.1.1), all in one walk: siblings from the leaf upwards."""
    paths: list[list[bytes]] = [[] for _ in leaves]
    _collect_paths([merkle.leaf_hash(leaf) for leaf in leaves], 0, paths)
    return tuple(tuple(path) for path in paths)


def is_in_tree(leaf: bytes, path: Sequence[bytes], *, index: int, n_leaves: int, root: bytes) -> bool:
    """Whether the path leads from this leaf, at this place among so many, to the root."""
    return merkle.is_included(merkle.leaf_hash(leaf), index=index, size=n_leaves, path=path, root=root)


def _collect_paths(hashes: Sequence[bytes], first: int, paths: list[list[bytes]]) -> bytes:
    """Append to every leaf's path its sibling at this level; the subtree's root."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1 << ((len(hashes) - 1).bit_length() - 1)
    left = _collect_paths(hashes[:k], first, paths)
    right = _collect_paths(hashes[k:], first + k, paths)
    for index in range(first, first + k):
        paths[index].append(right)
    for index in range(first + k, first + len(hashes)):
        paths[index].append(left)
    return merkle.node_hash(left, right)
