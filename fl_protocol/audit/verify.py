"""Verification of a whole log against its signed checkpoints; where it fails, it names the row.

In this order:
  1. every checkpoint's signature, its form, and its origin (the same in all, or the one that is asked for);
  2. every row: its stored leaf hash is that of its bytes; its bytes are an event; its ``seq`` is its place;
  3. every link: ``prev`` of each row is the leaf hash of the row before;
  4. the log is at least as long as every checkpoint, and its head at each checkpoint's size is the signed one.

Rows that a party rewrites together with their hashes and links keep 2 and 3 and fail 4: then the fault names the first
row that no earlier checkpoint vouches for. Rows after the last checkpoint are vouched for by nobody yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.checkpoint import Checkpoint, CheckpointInvalidError, verify_checkpoint
from fl_protocol.audit.events import NO_EVENT, AuditEventInvalidError, RecordedEvent, event_from_bytes
from fl_protocol.codec.merkle import CompactRange, leaf_hash
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


def verify_log(
    rows: Sequence[AuditRow], checkpoints: Sequence[SignedBody], spki_der: bytes, *, origin: str | None = None
) -> AuditVerified | AuditFault:
    """Verify a log as stored.

    Args:
        rows: in the order of the store.
        checkpoints: every signed checkpoint, in any order.
        spki_der: the signing key of the party whose log it is.
        origin: whose log it must be; None: whatever all checkpoints agree on.

    Raises:
        SigningKeyInvalidError: ``spki_der`` is no P-256 key.
    """
    opened = _open_checkpoints(checkpoints, spki_der, origin)
    if isinstance(opened, AuditFault):
        return opened
    events: list[RecordedEvent] = []
    for place, row in enumerate(rows):
        event = _open_row(row)
        if event is None:
            return AuditFault(seq=place, reason=AuditFaultReason.ALTERED)
        events.append(event)
    fault = _misplaced(events, rows) or _broken_link(events, rows)
    if fault is not None:
        return fault
    return _compare_heads(rows, opened)


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


def _misplaced(events: Sequence[RecordedEvent], rows: Sequence[AuditRow]) -> AuditFault | None:
    """The first place whose row says that it belongs elsewhere, or whose column disagrees with its bytes."""
    places = {event.seq for event in events}
    for place, (event, row) in enumerate(zip(events, rows, strict=True)):
        if event.seq == place:
            if row.seq != place:
                return AuditFault(seq=place, reason=AuditFaultReason.REORDERED)
            continue
        if event.seq < place:
            return AuditFault(seq=place, reason=AuditFaultReason.INSERTED)
        # A later row stands here: either this place's row stands further down, or it is gone.
        reason = AuditFaultReason.REORDERED if place in places else AuditFaultReason.DROPPED
        return AuditFault(seq=place, reason=reason)
    return None


def _broken_link(events: Sequence[RecordedEvent], rows: Sequence[AuditRow]) -> AuditFault | None:
    """The first row that cannot be what its neighbours say.

    A link (i, i + 1) breaks when row i was altered, or when the ``prev`` in row i + 1 was. One altered row breaks the
    link behind it, and the one before it only if its ``prev`` was altered as well; so where both links of row i + 1
    are broken, it alone explains them.
    """
    if events and events[0].prev != NO_EVENT:
        return AuditFault(seq=0, reason=AuditFaultReason.ALTERED)
    for place in range(len(events) - 1):
        if _is_linked(events, rows, place):
            continue
        is_next_broken = place + 2 < len(events) and not _is_linked(events, rows, place + 1)
        return AuditFault(seq=place + 1 if is_next_broken else place, reason=AuditFaultReason.ALTERED)
    return None


def _is_linked(events: Sequence[RecordedEvent], rows: Sequence[AuditRow], place: int) -> bool:
    return events[place + 1].prev == rows[place].leaf_sha256


def _compare_heads(rows: Sequence[AuditRow], checkpoints: Sequence[Checkpoint]) -> AuditVerified | AuditFault:
    tree = CompactRange()
    vouched = 0
    for checkpoint in checkpoints:
        if checkpoint.size > len(rows):
            return AuditFault(seq=len(rows), reason=AuditFaultReason.TRUNCATED)
        for row in rows[tree.size : checkpoint.size]:
            tree = tree.append(bytes.fromhex(row.leaf_sha256))
        if tree.root().hex() != checkpoint.head:
            return AuditFault(seq=vouched, reason=AuditFaultReason.REWRITTEN)
        vouched = checkpoint.size
    for row in rows[tree.size :]:
        tree = tree.append(bytes.fromhex(row.leaf_sha256))
    return AuditVerified(size=tree.size, head=Sha256Hex(tree.root().hex()), n_unsigned=len(rows) - vouched)
