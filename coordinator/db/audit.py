"""The coordinator's evidence: one RFC 6962 log, appended last in the transaction of what it records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.models import AuditCheckpoint, AuditRow, AuditTip
from fl_protocol.audit.chain import LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import Signer

_ONLY_ROW = 1


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
    held = session.get(AuditTip, _ONLY_ROW, with_for_update=True)
    tip = LogTip() if held is None else LogTip.decode(held.encoded)
    event = AuditEvent(kind=kind, at=now, actor=actor, facts=facts)
    following, row = append_event(tip, event)
    session.add(AuditRow(seq=row.seq, at=now, kind=kind.value, body=row.body, leaf_sha256=row.leaf_sha256))
    if held is None:
        session.add(AuditTip(id=_ONLY_ROW, encoded=following.encode()))
    else:
        held.encoded = following.encode()
    session.flush()
    return row.seq


def audit_head(session: Session) -> tuple[int, Sha256Hex]:
    """How many rows the log has, and its head."""
    held = session.get(AuditTip, _ONLY_ROW)
    head = (LogTip() if held is None else LogTip.decode(held.encoded)).head()
    return head.size, head.root


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
