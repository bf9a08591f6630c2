"""Runs as this site has seen them, and the statements that wait to be sent. Reads and writes rows; decides nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import RunId, Sha256Hex, run_id_from_text
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.run_spec import RunSpec, run_spec_from_bytes
from site_agent.approvals.errors import RunDocumentInvalidError, RunUnknownError
from site_agent.approvals.statement import Decision
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.db.models import ApprovalRow, RunLedgerRow, SiteSwitchRow
from site_agent.db.tx import SiteDb
from site_agent.policy.evaluate import ApprovalTerm

PENDING = "pending"
STANDING = frozenset({Decision.APPROVED.value, "active", "paused"})
"""States of a run that this site has approved and that is not over."""
COMPLETED = "completed"
"""The last round is settled: the run is over at this site."""
ENDED = "ended"
"""The coordinator ended the run before this site settled its last round; ``reason`` says how."""
OVER = frozenset({Decision.WITHDRAWN.value, COMPLETED, ENDED})
"""Nothing follows on these."""
_IN_HAND = STANDING | {PENDING}
_PAUSED_SWITCH = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInHand:
    """A run that the coordinator offered, with the exact bytes that its digests are over."""

    run_id: RunId
    name: str
    run_spec_sha256: Sha256Hex
    run_spec_json: bytes
    layout_json: bytes
    initial_state_sha256: Sha256Hex

    def run_spec(self) -> RunSpec:
        """The specification, once its bytes are known to have the run's digest.

        Raises:
            RunDocumentInvalidError: the bytes have another digest or are no specification.
        """
        advice = "Do not approve it; tell the study lead. The coordinator sent something else than it announced."
        if hashlib.sha256(self.run_spec_json).hexdigest() != self.run_spec_sha256:
            message = "the run's specification is not the one whose digest was announced"
            raise RunDocumentInvalidError(message, advice=advice, run_id=self.run_id)
        try:
            return run_spec_from_bytes(self.run_spec_json)
        except ProtocolError as error:
            message = f"the run's specification cannot be read: {error}"
            raise RunDocumentInvalidError(message, advice=advice, run_id=self.run_id) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run with this site's word on it so far."""

    run: RunInHand
    state: str
    reason: str | None
    first_seen_at: datetime
    approved_at: datetime | None
    approved_by: str | None
    dataset: str | None
    purpose: str | None
    expires_at: datetime | None

    def term(self) -> ApprovalTerm | None:
        """For how long the run was approved; None where it never was."""
        if self.approved_at is None:
            return None
        return ApprovalTerm(approved_at=self.approved_at, ends_at=self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsentStatement:
    """A signed statement that the coordinator does not have yet."""

    approval_id: int
    run_id: RunId
    decision: Decision
    statement: SignedBody


def record_pending_run(db: SiteDb, audit: AuditLog, run: RunInHand, *, now: datetime) -> bool:
    """Keep a run for the steward; False when this site knows it already.

    Raises:
        RunDocumentInvalidError: its bytes do not fit its digest, or differ from those that were seen first.
        SiteDatabaseError: nothing was recorded.
    """
    run_id_from_text(run.run_id)
    run_spec = run.run_spec()

    def write(session: Session) -> bool:
        known = session.get(RunLedgerRow, run.run_id)
        if known is not None:
            if known.run_spec_sha256 != run.run_spec_sha256:
                message = "the coordinator now shows another specification for a run that this site has seen"
                advice = "Do not approve it; a run's specification is frozen. Tell the study lead."
                raise RunDocumentInvalidError(message, advice=advice, run_id=run.run_id)
            return False
        session.add(
            RunLedgerRow(
                run_id=run.run_id,
                name=run_spec.name,
                state=PENDING,
                reason=None,
                run_spec_sha256=run.run_spec_sha256,
                run_spec_json=run.run_spec_json,
                layout_json=run.layout_json,
                initial_state_sha256=run.initial_state_sha256,
                first_seen_at=instant_text(now),
                dataset=run_spec.data.dataset,
            )
        )
        session.flush()
        audit.append(
            session, AuditKind.RUN_STATE, run_id=run.run_id, run_spec_sha256=run.run_spec_sha256, state=PENDING
        )
        return True

    return db.run_tx("record_pending_run", write)


def find_run(session: Session, run_id: str) -> RunRecord:
    """One run. Raises RunUnknownError."""
    row = session.get(RunLedgerRow, run_id)
    if row is None:
        raise unknown_run(run_id)
    return record_from_row(row)


def list_runs(session: Session, *, state: str | None = None) -> tuple[RunRecord, ...]:
    """Runs in the order in which they were first seen."""
    query = select(RunLedgerRow).order_by(RunLedgerRow.first_seen_at, RunLedgerRow.run_id)
    if state is not None:
        query = query.where(RunLedgerRow.state == state)
    return tuple(record_from_row(row) for row in session.scalars(query))


def has_run_in_hand(session: Session) -> bool:
    """Whether a run waits for this site's word, or is under way with it."""
    return session.scalar(select(RunLedgerRow.run_id).where(RunLedgerRow.state.in_(_IN_HAND)).limit(1)) is not None


def standing_run_ids(session: Session) -> frozenset[RunId]:
    """The runs that this site has approved and that are not over."""
    query = select(RunLedgerRow.run_id).where(RunLedgerRow.state.in_(STANDING))
    return frozenset(RunId(run_id) for run_id in session.scalars(query))


def runs_in_hand(session: Session) -> tuple[RunRecord, ...]:
    """The runs that wait for this site's word, or are under way with it, in the order in which they were first seen."""
    return tuple(record for record in list_runs(session) if record.state in _IN_HAND)


def end_run(db: SiteDb, audit: AuditLog, run_id: RunId, *, reason: str) -> bool:
    """Record that the coordinator ended a run that was in hand; False where it was not. Raises SiteDatabaseError.

    Args:
        db: of the site.
        audit: of the site.
        run_id: which.
        reason: how, in one word of this program's own.
    """

    def write(session: Session) -> bool:
        row = session.get_one(RunLedgerRow, run_id)
        if row.state not in _IN_HAND:
            return False
        row.state, row.reason = ENDED, reason
        audit.append(session, AuditKind.RUN_STATE, run_id=run_id, state=ENDED, reason=reason)
        return True

    return db.run_tx("end_run", write)


def complete_run(session: Session, audit: AuditLog, run_id: RunId) -> None:
    """The run's last round is settled. Doing it again does nothing; nor is a run that was taken back completed."""
    row = session.get_one(RunLedgerRow, run_id)
    if row.state in STANDING:
        row.state = COMPLETED
        audit.append(session, AuditKind.RUN_STATE, run_id=run_id, state=COMPLETED)


def unsent_statements(session: Session) -> tuple[UnsentStatement, ...]:
    """What the daemon has to send, oldest first."""
    query = select(ApprovalRow).where(ApprovalRow.sent_at.is_(None)).order_by(ApprovalRow.approval_id)
    return tuple(
        UnsentStatement(
            approval_id=row.approval_id,
            run_id=RunId(row.run_id),
            decision=Decision(row.decision),
            statement=SignedBody(body=row.statement_body, signature=row.signature),
        )
        for row in session.scalars(query)
    )


def mark_statement_sent(db: SiteDb, *, approval_id: int, now: datetime) -> None:
    """Note that the coordinator has a statement. Raises SiteDatabaseError."""

    def write(session: Session) -> None:
        row = session.get_one(ApprovalRow, approval_id)
        row.sent_at = instant_text(now)

    db.run_tx("mark_statement_sent", write)


def is_paused(session: Session) -> bool:
    """Whether the steward lets this site join no new round, mask nothing and reveal nothing."""
    row = session.get(SiteSwitchRow, _PAUSED_SWITCH)
    return row is not None and row.is_on


def set_paused(db: SiteDb, audit: AuditLog, *, is_paused: bool, actor: str, now: datetime) -> None:
    """Pause or resume the whole site. Raises SiteDatabaseError."""

    def write(session: Session) -> None:
        session.merge(SiteSwitchRow(name=_PAUSED_SWITCH, is_on=is_paused, set_at=instant_text(now), set_by=actor))
        session.flush()
        audit.append(session, AuditKind.RUN_PAUSED if is_paused else AuditKind.RUN_RESUMED, actor, scope="site")

    db.run_tx("set_paused", write)


def unknown_run(run_id: str) -> RunUnknownError:
    """The error for a run that this site has not seen."""
    advice = "'wardround-site runs pending' lists the runs that wait; the agent must be running to see new ones."
    return RunUnknownError("this site has not seen a run of that identifier", advice=advice, run_id=run_id[:80])


def record_from_row(row: RunLedgerRow) -> RunRecord:
    """A row as a plain value."""
    return RunRecord(
        run=RunInHand(
            run_id=RunId(row.run_id),
            name=row.name,
            run_spec_sha256=Sha256Hex(row.run_spec_sha256),
            run_spec_json=row.run_spec_json,
            layout_json=row.layout_json,
            initial_state_sha256=Sha256Hex(row.initial_state_sha256),
        ),
        state=row.state,
        reason=row.reason,
        first_seen_at=instant_from_text(row.first_seen_at),
        approved_at=None if row.approved_at is None else instant_from_text(row.approved_at),
        approved_by=row.approved_by,
        dataset=row.dataset,
        purpose=row.purpose,
        expires_at=None if row.expires_at is None else instant_from_text(row.expires_at),
    )
