"""One RFC 6962 log a party: appending, its head, and proofs. The hash chain is inside the leaves (``prev``).

Both belong together: ``prev`` lets anyone who walks the rows name the one that was altered; the tree lets one who holds
only a head (a site, the other party's receipt) check that a later log still contains the earlier one. Knows no storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_protocol.audit.events import NO_EVENT, AuditEvent, RecordedEvent, event_bytes
from fl_protocol.codec.merkle import (
    CompactRange,
    consistency_path,
    inclusion_path,
    is_consistent,
    is_included,
    leaf_hash,
)
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex
from fl_protocol.packing import PackedBytesInvalidError, pack, text_from_bytes, u64, u64_from_bytes, unpack


class AuditProofInvalidError(ProtocolError):
    """A proof does not show what it should."""

    code = "audit-proof-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One row as it is stored: its place, its bytes and their leaf hash."""

    seq: int
    body: bytes
    leaf_sha256: Sha256Hex


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """The size and the head of a log at one moment."""

    size: int
    root: Sha256Hex


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTip:
    """What must be kept to append: the last leaf and the frontier of the tree. Start with ``LogTip()``."""

    last_leaf: str = NO_EVENT
    tree: CompactRange = field(default_factory=CompactRange)

    @property
    def size(self) -> int:
        """How many rows the log has; the ``seq`` of the next."""
        return self.tree.size

    def head(self) -> TreeHead:
        """The log's size and head."""
        return TreeHead(size=self.tree.size, root=Sha256Hex(self.tree.root().hex()))

    def encode(self) -> bytes:
        """``pack(u64(size), last leaf, frontier...)``, to be stored beside the rows."""
        return pack(u64(self.tree.size), self.last_leaf.encode(), *self.tree.frontier)

    @classmethod
    def decode(cls, data: bytes) -> LogTip:
        """Read what ``encode`` wrote.

        Raises:
            PackedBytesInvalidError: the bytes are no tip.
        """
        fields = unpack(data)
        if len(fields) < 2:
            raise PackedBytesInvalidError("a log's tip has a size and a last leaf", n_fields=len(fields))
        try:
            tree = CompactRange(size=u64_from_bytes(fields[0]), frontier=fields[2:])
        except ValueError as error:
            raise PackedBytesInvalidError("the frontier does not belong to a log of this size") from error
        return cls(last_leaf=text_from_bytes(fields[1]), tree=tree)


def append_event(tip: LogTip, event: AuditEvent) -> tuple[LogTip, AuditRow]:
    """The row for ``event`` as the next of the log, and the log's tip after it."""
    body = event_bytes(RecordedEvent(seq=tip.size, prev=tip.last_leaf, event=event))
    leaf = leaf_hash(body)
    row = AuditRow(seq=tip.size, body=body, leaf_sha256=Sha256Hex(leaf.hex()))
    return LogTip(last_leaf=row.leaf_sha256, tree=tip.tree.append(leaf)), row


def tip_from_leaves(leaves: Sequence[str]) -> LogTip:
    """The tip of the log whose leaf hashes, in hexadecimal, are ``leaves``."""
    tree = CompactRange()
    for leaf in leaves:
        tree = tree.append(bytes.fromhex(leaf))
    return LogTip(last_leaf=leaves[-1] if leaves else NO_EVENT, tree=tree)


def prove_inclusion(leaves: Sequence[str], seq: int) -> tuple[str, ...]:
    """The proof that row ``seq`` is in the log of these leaf hashes. Raises IndexError where there is no such row."""
    return tuple(node.hex() for node in inclusion_path([bytes.fromhex(leaf) for leaf in leaves], seq))


def prove_consistency(leaves: Sequence[str], old_size: int) -> tuple[str, ...]:
    """The proof that the log of these leaf hashes continues that of its first ``old_size``. Raises IndexError."""
    return tuple(node.hex() for node in consistency_path([bytes.fromhex(leaf) for leaf in leaves], old_size))


def verify_inclusion(body: bytes, *, seq: int, head: TreeHead, proof: Sequence[str]) -> None:
    """Check that the event ``body`` is row ``seq`` of the log with this head.

    Raises:
        AuditProofInvalidError: the proof does not show it.
    """
    path = _nodes(proof)
    if not is_included(leaf_hash(body), index=seq, size=head.size, path=path, root=bytes.fromhex(head.root)):
        raise AuditProofInvalidError("the proof does not show that the row is in the log", seq=seq, size=head.size)


def verify_consistency(old: TreeHead, new: TreeHead, proof: Sequence[str]) -> None:
    """Check that the log with head ``new`` continues the one with head ``old``: nothing altered, nothing dropped.

    Raises:
        AuditProofInvalidError: the proof does not show it.
    """
    if not is_consistent(
        old_size=old.size,
        old_root=bytes.fromhex(old.root),
        new_size=new.size,
        new_root=bytes.fromhex(new.root),
        path=_nodes(proof),
    ):
        message = "the proof does not show that the later log continues the earlier one"
        raise AuditProofInvalidError(message, old_size=old.size, new_size=new.size)


def _nodes(proof: Sequence[str]) -> list[bytes]:
    try:
        return [bytes.fromhex(node) for node in proof]
    except ValueError as error:
        raise AuditProofInvalidError("a proof is a list of hashes in hexadecimal") from error
