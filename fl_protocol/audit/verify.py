"""Verification of a whole log against its signed checkpoints; where it fails, it names the row.

In this order:
  1. every checkpoint's signature, its form, and its origin (the same in all, or the one that is asked for);
  2. row by row: its stored leaf hash is that of its bytes; its bytes are an event; its ``seq`` is its place; ``prev``
     is the leaf hash of the row before;
  3. as the rows pass: at each checkpoint's size the head is the signed one, and no checkpoint is of a longer log.

Rows that a party rewrites together with their hashes and links keep 2 and fail 3: then the fault names the first row
that no earlier checkpoint vouches for. Rows after the last checkpoint are vouched for by nobody yet. The rows are read
once, in order, and not kept: a log of any length takes the memory of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.checkpoint import Checkpoint, CheckpointInvalidError, verify_checkpoint
from fl_protocol.audit.events import NO_EVENT, AuditEventInvalidError, RecordedEvent, event_from_bytes
from fl_protocol.codec.merkle import GrowingTree, leaf_hash
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import SignatureInvalidError
from fl_protocol.signing.signed import SignedBody


class AuditFaultReason(StrEnum):
    """What is wrong with a log."""

    CHECKPOINT_SIGNATURE = "checkpoint-signature"
    """A checkpoint is not signed by the party's key, or is malformed; ``seq`` is its number among the checkpoints."""
    CHECKPOINT_ORIGIN = "checkpoint-origin"
    """A checkpoint is of another log; ``seq`` is its number among the checkpoints."""
    ALTERED = "altered"
    """The row's bytes are not those that were recorded."""
    DROPPED = "dropped"
    """The row is missing."""
    REORDERED = "reordered"
    """Another row stands in the row's place, and the row stands elsewhere."""
    INSERTED = "inserted"
    """A row stands there that repeats the place of another."""
    TRUNCATED = "truncated"
    """The log ends before the row, although a checkpoint covers it."""
    REWRITTEN = "rewritten"
    """From the row on, rows were replaced together with their hashes: a signed head is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerified:
    """The log is whole.

    Attributes:
        size: how many rows it has.
        head: its head over all of them.
        n_unsigned: how many rows follow the last checkpoint.
    """

    size: int
    head: Sha256Hex
    n_unsigned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFault:
    """The log is not what was recorded; ``seq`` names the row."""

    seq: int
    reason: AuditFaultReason


OnRow = Callable[[RecordedEvent, bytes], None]
"""Is told each row that passed step 2: its event and its leaf hash."""


def verify_log(
    rows: Iterable[AuditRow],
    checkpoints: Sequence[SignedBody],
    spki_der: bytes,
    *,
    origin: str | None = None,
    on_row: OnRow | None = None,
) -> AuditVerified | AuditFault:
    """Verify a log as stored.

    Args:
        rows: in the order of the store; read once.
        checkpoints: every signed checkpoint, in any order.
        spki_der: the signing key of the party whose log it is.
        origin: whose log it must be; None: whatever all checkpoints agree on.
        on_row: is told each row on the way, for who wants more than a verdict; what it heard of a log that then turns
            out to be faulty is worth nothing.

    Raises:
        SigningKeyInvalidError: ``spki_der`` is no P-256 key.
    """
    opened = _open_checkpoints(checkpoints, spki_der, origin)
    if isinstance(opened, AuditFault):
        return opened
    return _Walk(iter(rows), opened, on_row).verdict()


class _Walk:
    """One pass over the rows."""

    def __init__(self, rows: Iterator[AuditRow], checkpoints: Sequence[Checkpoint], on_row: OnRow | None) -> None:
        self._rows = rows
        self._checkpoints = checkpoints
        self._on_row = on_row
        self._tree = GrowingTree()
        self._n_met = 0
        self._vouched = 0

    def verdict(self) -> AuditVerified | AuditFault:
        last = NO_EVENT
        for row in self._rows:
            place = self._tree.size
            event = _open_row(row)
            if event is None:
                return AuditFault(seq=place, reason=AuditFaultReason.ALTERED)
            if event.seq != place:
                return self._misplaced(event)
            if row.seq != place:
                return AuditFault(seq=place, reason=AuditFaultReason.REORDERED)
            if event.prev != last:
                return self._broken_link(row)
            # The checkpoint over the rows before: only now, since a row that was altered with its hash breaks the link
            # behind it, and is better named by that.
            fault = self._meet_checkpoints()
            if fault is not None:
                return fault
            last = row.leaf_sha256
            leaf = bytes.fromhex(last)
            self._tree.append(leaf)
            if self._on_row is not None:
                self._on_row(event, leaf)
        return self._end()

    def _meet_checkpoints(self) -> AuditFault | None:
        while self._n_met < len(self._checkpoints) and self._checkpoints[self._n_met].size == self._tree.size:
            if self._tree.root().hex() != self._checkpoints[self._n_met].head:
                return AuditFault(seq=self._vouched, reason=AuditFaultReason.REWRITTEN)
            self._vouched = self._tree.size
            self._n_met += 1
        return None

    def _end(self) -> AuditVerified | AuditFault:
        fault = self._meet_checkpoints()
        if fault is not None:
            return fault
        size = self._tree.size
        if self._n_met < len(self._checkpoints):
            return AuditFault(seq=size, reason=AuditFaultReason.TRUNCATED)
        head = Sha256Hex(self._tree.root().hex())
        return AuditVerified(size=size, head=head, n_unsigned=size - self._vouched)

    def _misplaced(self, event: RecordedEvent) -> AuditFault:
        """A row that says that it belongs elsewhere. Reads on, to tell whether this place's own row is further down."""
        place = self._tree.size
        if event.seq < place:
            return AuditFault(seq=place, reason=AuditFaultReason.INSERTED)
        is_further_down = any(later is not None and later.seq == place for later in map(_open_row, self._rows))
        reason = AuditFaultReason.REORDERED if is_further_down else AuditFaultReason.DROPPED
        return AuditFault(seq=place, reason=reason)

    def _broken_link(self, row: AuditRow) -> AuditFault:
        """The link before ``row`` is broken: it was altered, or the row before it was.

        One altered row breaks the link behind it, and the one before it only if its ``prev`` was altered as well; so
        where both links of a row are broken, it alone explains them.
        """
        place = self._tree.size
        if place == 0:
            return AuditFault(seq=0, reason=AuditFaultReason.ALTERED)
        following = next(map(_open_row, self._rows), None)
        is_next_broken = following is not None and following.prev != row.leaf_sha256
        return AuditFault(seq=place if is_next_broken else place - 1, reason=AuditFaultReason.ALTERED)


def _open_checkpoints(
    checkpoints: Sequence[SignedBody], spki_der: bytes, origin: str | None
) -> list[Checkpoint] | AuditFault:
    opened: list[Checkpoint] = []
    for number, signed in enumerate(checkpoints):
        try:
            checkpoint = verify_checkpoint(spki_der, signed)
        except (SignatureInvalidError, CheckpointInvalidError):
            return AuditFault(seq=number, reason=AuditFaultReason.CHECKPOINT_SIGNATURE)
        if checkpoint.origin != (origin or checkpoint.origin):
            return AuditFault(seq=number, reason=AuditFaultReason.CHECKPOINT_ORIGIN)
        origin = checkpoint.origin
        opened.append(checkpoint)
    return sorted(opened, key=lambda checkpoint: checkpoint.size)


def _open_row(row: AuditRow) -> RecordedEvent | None:
    if leaf_hash(row.body).hex() != row.leaf_sha256:
        return None
    try:
        return event_from_bytes(row.body)
    except AuditEventInvalidError:
        return None
