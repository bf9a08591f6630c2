"""A coordinator's audit log that is nothing but leaf hashes: heads and proofs follow, and a test rewrites them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from fl_protocol.codec.merkle import consistency_path, root_from_leaf_hashes
from fl_protocol.ids import Sha256Hex
from site_agent.errors import CoordinatorRefusedError
from site_agent.link.client import AuditConsistency


class LeafLog:
    """A list of leaves, and what a coordinator tells of it."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self.refuses_with: str | None = None

    def grow(self, n_rows: int = 3) -> None:
        """Some rows more."""
        self.leaves += [hashlib.sha256(f"{len(self.leaves)}/{part}".encode()).digest() for part in range(n_rows)]

    def head(self, size: int | None = None) -> Sha256Hex:
        """The head at a size, by default of all."""
        return Sha256Hex(root_from_leaf_hashes(self.leaves[:size]).hex())

    def prove(self, ranges: Iterable[tuple[int, int]]) -> AuditConsistency:
        """What the coordinator answers to a site."""
        asked = tuple(ranges)
        if self.refuses_with is not None or any(new > len(self.leaves) for _, new in asked):
            code = self.refuses_with or "audit-log-shorter"
            raise CoordinatorRefusedError("no", status="FAILED_PRECONDITION", refusal_code=code)
        return AuditConsistency(proofs=tuple(tuple(self._nodes(old, new)) for old, new in asked), held=None)

    def _nodes(self, old: int, new: int) -> Iterator[str]:
        return (node.hex() for node in consistency_path(self.leaves[:new], old))
