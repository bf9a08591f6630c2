"""Appending to the audit log, inside the transaction of what it records, and verifying it.

Each append signs a checkpoint over the whole log, so that a signature stands behind every row; of the older
checkpoints every 64th is kept. What fails here raises, and takes the transaction with it: no record, no action. Knows
the tables and ``fl_protocol.audit``, not what the events mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from fl_protocol.audit.chain import AuditRow, LogTip, TreeHead, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind
from fl_protocol.audit.verify import AuditFault, AuditFaultReason, AuditVerified, verify_log
from fl_protocol.clock import Clock
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.packing import PackedBytesInvalidError
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.models import AuditCheckpointRow, AuditEventRow, AuditTipRow
from site_agent.db.tables import table_of
from site_agent.db.tx import SiteDb

_KEPT_EVERY = 64
_THE_TIP = 1

# Statements and no mapped rows: every step of a round appends.
_TIP = table_of(AuditTipRow)
_READ_TIP = select(_TIP.c.tip).where(_TIP.c.one == _THE_TIP)
_ADD_TIP = insert(_TIP).values(one=_THE_TIP, tip=bindparam("encoded"))
_MOVE_TIP = update(_TIP).where(_TIP.c.one == _THE_TIP).values(tip=bindparam("encoded"))
_ADD_EVENT = insert(table_of(AuditEventRow))
_CHECKPOINTS = table_of(AuditCheckpointRow)
_ADD_CHECKPOINT = insert(_CHECKPOINTS)
_DROP_CHECKPOINT = delete(_CHECKPOINTS).where(_CHECKPOINTS.c.size == bindparam("of_size"))


class AuditLogDamagedError(SiteDatabaseError):
    """The log cannot be continued: what is stored beside its rows does not fit them. No record, no action."""

    code = "audit-log-damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLog:
    """The whole log as it is stored."""

    rows: tuple[AuditRow, ...]
    checkpoints: tuple[SignedBody, ...]
    tip_size: int


def origin_of_site(site_id: SiteId) -> str:
    """The name under which a site signs its log."""
    return f"site:{site_id}"


class AuditLog:
    """Appends to one site's log. Invariant: a row and the checkpoint over it are written together."""

    def __init__(self, signer: Signer, clock: Clock, origin: str) -> None:
        """Take the key that signs checkpoints, the clock that dates events and the log's name."""
        self._signer = signer
        self._clock = clock
        self._origin = origin

    def append(self, session: Session, kind: AuditKind, actor: str = "agent", **facts: AuditFact) -> int:
        """Append an event, last in its transaction.

        Returns:
            The event's sequence number.

        Raises:
            AuditEventInvalidError: the actor or a fact cannot be recorded.
            AuditLogDamagedError: the log cannot be continued.
            SQLAlchemyError: the row was not written; ``run_tx`` translates it.
        """
        now = self._clock.now()
        # What it records is in the database before it.
        session.flush()
        held = session.execute(_READ_TIP).scalar_one_or_none()
        before = LogTip() if held is None else _tip(held)
        tip, row = append_event(before, AuditEvent(kind=kind, at=now, actor=actor, facts=facts))
        session.execute(_ADD_EVENT, {"seq": row.seq, "body": row.body, "leaf_sha256": row.leaf_sha256})
        session.execute(_ADD_TIP if held is None else _MOVE_TIP, {"encoded": tip.encode()})
        head = tip.head()
        checkpoint = Checkpoint(origin=self._origin, size=head.size, head=head.root, at=now)
        signed = sign_checkpoint(self._signer, checkpoint)
        previous = head.size - 1
        if previous % _KEPT_EVERY:
            session.execute(_DROP_CHECKPOINT, {"of_size": previous})
        session.execute(_ADD_CHECKPOINT, {"size": head.size, "body": signed.body, "signature": signed.signature})
        return row.seq


def audit_head(session: Session) -> TreeHead:
    """The log's size and head: what M1 and receipts carry. Raises AuditLogDamagedError."""
    held = session.execute(_READ_TIP).scalar_one_or_none()
    return LogTip().head() if held is None else _tip(held).head()


def read_log(session: Session) -> StoredLog:
    """Everything that is stored, unverified."""
    rows = session.scalars(select(AuditEventRow).order_by(AuditEventRow.seq))
    checkpoints = session.scalars(select(AuditCheckpointRow).order_by(AuditCheckpointRow.size))
    tip = session.execute(_READ_TIP).scalar_one_or_none()
    return StoredLog(
        rows=tuple(
            AuditRow(seq=row.seq, body=_stored_bytes(row.body), leaf_sha256=Sha256Hex(str(row.leaf_sha256)))
            for row in rows
        ),
        checkpoints=tuple(
            SignedBody(body=_stored_bytes(row.body), signature=_stored_bytes(row.signature)) for row in checkpoints
        ),
        tip_size=0 if tip is None else _tip(tip).size,
    )


def verify_site_log(db: SiteDb, spki_der: bytes, *, origin: str) -> AuditVerified | AuditFault:
    """Verify the whole log as it is stored; a fault names the row.

    Raises:
        SiteDatabaseError: the log cannot be read.
        AuditLogDamagedError: the log's tip is no tip.
    """
    return verify_stored_log(db.run_read("read_log", read_log), spki_der, origin=origin)


def verify_stored_log(log: StoredLog, spki_der: bytes, *, origin: str) -> AuditVerified | AuditFault:
    """Verify rows against checkpoints, and that the log has as many rows as it says it has."""
    verdict = verify_log(log.rows, log.checkpoints, spki_der, origin=origin)
    if isinstance(verdict, AuditFault):
        return verdict
    # Every append signs: rows behind the last checkpoint were not appended by this program.
    if verdict.n_unsigned or log.tip_size < verdict.size:
        return AuditFault(seq=min(verdict.size - verdict.n_unsigned, log.tip_size), reason=AuditFaultReason.INSERTED)
    if log.tip_size > verdict.size:
        return AuditFault(seq=verdict.size, reason=AuditFaultReason.TRUNCATED)
    return verdict


def _stored_bytes(value: object) -> bytes:
    """What SQLite holds in a column of bytes. A hand that altered it may have left a text, a number or nothing."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _tip(data: object) -> LogTip:
    try:
        return LogTip.decode(_stored_bytes(data))
    except PackedBytesInvalidError as error:
        message = "the audit log cannot be continued; run 'wardround-site audit verify' and restore a backup"
        raise AuditLogDamagedError(message) from error
