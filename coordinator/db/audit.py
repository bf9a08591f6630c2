"""The coordinator's evidence: one RFC 6962 log, appended last in the transaction of what it records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from coordinator.db.models import AuditCheckpoint, AuditRow, AuditTip
from coordinator.db.notes import note
from coordinator.db.tables import table_of
from coordinator.errors import AuditLogDamagedError
from fl_protocol.audit.chain import LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind
from fl_protocol.ids import Sha256Hex
from fl_protocol.packing import PackedBytesInvalidError
from fl_protocol.signing.keys import Signer

_ONLY_ROW = 1
_TIP = table_of(AuditTip)
_READ_TIP = select(_TIP.c.encoded).where(_TIP.c.id == _ONLY_ROW)
_LOCK_TIP = _READ_TIP.with_for_update()
_ADD_TIP = insert(_TIP).values(id=_ONLY_ROW, encoded=bindparam("encoded"))
_MOVE_TIP = update(_TIP).where(_TIP.c.id == _ONLY_ROW).values(encoded=bindparam("encoded"))
_ADD_ROW = insert(table_of(AuditRow))


def append_audit(
    session: Session, kind: AuditKind, *, actor: str, facts: Mapping[str, AuditFact], now: datetime
) -> int:
    """Append one event; call it after every other write of the transaction.

    Several processes write one log. Two transactions that append at once cannot both commit: SQLite lets one write at a
    time; on PostgreSQL the tip's row is locked, the second waits for the first and is then run again, alone (see
    ``tx``). The rows' key is the sequence number, so that a fork of the chain could not even be stored.

    Args:
        session: of the transaction that makes the event true.
        kind: what happened.
        actor: ``site:<name>``, ``user:<name>`` or ``coordinator``.
        facts: identifiers, digests and figures; never a record, a tensor or a key.
        now: aware, in UTC.

    Returns:
        The event's sequence number.
    """
    return append_all(session, [AuditEvent(kind=kind, at=now, actor=actor, facts=facts)])


def append_all(session: Session, events: Sequence[AuditEvent]) -> int:
    """``append_audit`` for what one transaction has to say; at least one event.

    Returns:
        The last event's sequence number.

    Raises:
        AuditLogDamagedError: the log cannot be continued; what would have been recorded does not happen.
    """
    # What it records is in the database before it. Statements and no mapped rows: every message of a site passes here.
    session.flush()
    held = session.execute(_LOCK_TIP).scalar_one_or_none()
    tip = _tip(held)
    rows: list[dict[str, object]] = []
    for event in events:
        tip, row = append_event(tip, event)
        rows.append(
            {
                "seq": row.seq,
                "at": event.at,
                "kind": event.kind.value,
                "body": row.body,
                "leaf_sha256": row.leaf_sha256,
            }
        )
    session.execute(_ADD_ROW, rows)
    session.execute(_ADD_TIP if held is None else _MOVE_TIP, {"encoded": tip.encode()})
    for event in events:
        note(session, event)
    return tip.size - 1


def audit_head(session: Session) -> tuple[int, Sha256Hex]:
    """How many rows the log has, and its head."""
    held = session.execute(_READ_TIP).scalar_one_or_none()
    head = _tip(held).head()
    return head.size, head.root


def _tip(held: bytes | None) -> LogTip:
    if held is None:
        return LogTip()
    try:
        return LogTip.decode(held)
    except PackedBytesInvalidError as error:
        message = "the audit log cannot be continued; verify its export, and restore a backup"
        raise AuditLogDamagedError(message) from error


def write_checkpoint(session: Session, *, signer: Signer, origin: str, now: datetime) -> Checkpoint:
    """Sign the log's present head and keep the signature; again for the same size is once.

    Args:
        session: after the last ``append_audit`` of its transaction.
        signer: the coordinator's.
        origin: the name of this log.
        now: aware, in UTC.
    """
    size, head = audit_head(session)
    held = session.get(AuditCheckpoint, size)
    if held is not None:
        return Checkpoint.decode(held.body)
    checkpoint = Checkpoint(origin=origin, size=size, head=head, at=now)
    signed = sign_checkpoint(signer, checkpoint)
    session.add(AuditCheckpoint(size=size, head=head, at=now, body=signed.body, signature=signed.signature))
    session.flush()
    return checkpoint
