"""One decision on a run becomes a row, a signed statement and an audit event, in one transaction.

Who may decide what, and by which rules, is ``approve_run``'s; which decision may follow on which is said here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from site_agent.approvals.errors import RunAlreadyDecidedError
from site_agent.approvals.run_records import COMPLETED, ENDED, OVER, PENDING, RunRecord, find_run
from site_agent.approvals.statement import ApprovalStatement, Decision, sign_statement
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_text
from site_agent.db.models import ApprovalRow, RunLedgerRow
from site_agent.policy.rules import SitePolicy

AUTOMATIC_USER = "policy"
"""Who approves when no person does."""

_EVENT_KINDS = {
    Decision.APPROVED: AuditKind.RUN_APPROVED,
    Decision.REFUSED: AuditKind.RUN_DECLINED,
    Decision.WITHDRAWN: AuditKind.RUN_WITHDRAWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision before it is signed: what, whose, and on what terms."""

    decision: Decision
    local_user: str
    purpose: str | None = None
    reason: str | None = None
    is_automatic: bool = False
    accepted_unlisted: tuple[str, ...] = ()
    expires_at: datetime | None = None
    policy_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Whether an approval may take the place of one that stands: the person names an end, or the old one has ended."""

    is_asked_for: bool
    policy: SitePolicy
    now: datetime

    def may_replace(self, record: RunRecord) -> bool:
        """Whether a further approval of the run has a meaning."""
        term = record.term()
        return self.is_asked_for or (term is not None and term.last_instant(self.policy) <= self.now)


def decide(
    session: Session,
    audit: AuditLog,
    *,
    signer: Signer,
    run_id: str,
    verdict: Verdict,
    now: datetime,
    renewal: Renewal | None = None,
) -> SignedBody:
    """Sign a decision and write it with its event, inside the caller's transaction.

    Raises:
        RunUnknownError, RunDocumentInvalidError: there is no such run, or it is not what it says.
        RunAlreadyDecidedError: it cannot follow on what was decided.
    """
    record = find_run(session, run_id)
    check_may_follow(record, verdict.decision, renewal=renewal)
    statement = ApprovalStatement(
        run_id=record.run.run_id,
        run_spec_sha256=record.run.run_spec_sha256,
        cohort_sha256=record.run.run_spec().cohort.digest(),
        decision=verdict.decision,
        dataset=record.dataset or "",
        purpose=verdict.purpose,
        local_user=verdict.local_user,
        at=now,
        expires_at=verdict.expires_at,
    )
    signed = sign_statement(signer, statement)
    _write_decision(session, statement, signed, verdict)
    audit.append(
        session,
        _EVENT_KINDS[verdict.decision],
        actor_from_user(verdict.local_user),
        run_id=statement.run_id,
        run_spec_sha256=statement.run_spec_sha256,
        cohort_sha256=statement.cohort_sha256,
        dataset=statement.dataset,
        purpose=statement.purpose,
        expires_at=None if statement.expires_at is None else instant_text(statement.expires_at),
        reason=verdict.reason,
        is_automatic=verdict.is_automatic,
        accepted_unlisted=", ".join(verdict.accepted_unlisted) or None,
        policy_sha256=verdict.policy_sha256,
    )
    return signed


def _write_decision(session: Session, statement: ApprovalStatement, signed: SignedBody, verdict: Verdict) -> None:
    row = session.get_one(RunLedgerRow, statement.run_id)
    at = instant_text(statement.at)
    row.state = statement.decision.value
    row.reason = verdict.reason
    expires_at = None if statement.expires_at is None else instant_text(statement.expires_at)
    if statement.decision is Decision.APPROVED:
        row.approved_at, row.approved_by, row.purpose = at, statement.local_user, statement.purpose
        row.expires_at = expires_at
    session.add(
        ApprovalRow(
            run_id=statement.run_id,
            decision=statement.decision.value,
            statement_body=signed.body,
            signature=signed.signature,
            decided_at=at,
            decided_by=statement.local_user,
            is_automatic=verdict.is_automatic,
            accepted_unlisted_json=json.dumps(list(verdict.accepted_unlisted)),
            reason=verdict.reason,
            expires_at=expires_at,
            policy_sha256=verdict.policy_sha256,
        )
    )
    session.flush()


def check_may_follow(record: RunRecord, decision: Decision, *, renewal: Renewal | None = None) -> None:
    """A pending run may be approved or refused, a refused one approved after all, another renewed or withdrawn."""
    match decision:
        case Decision.APPROVED:
            is_possible = record.state in {PENDING, Decision.REFUSED.value} or (
                record.state not in OVER and renewal is not None and renewal.may_replace(record)
            )
        case Decision.REFUSED:
            is_possible = record.state == PENDING
        case Decision.WITHDRAWN:
            is_possible = record.state not in {PENDING, Decision.REFUSED.value, *OVER}
    if not is_possible:
        raise already_decided(record)


def already_decided(record: RunRecord) -> RunAlreadyDecidedError:
    """The error where the site's word was given, or the run is over."""
    advice = f"'wardround-site runs show {record.run.run_id}' shows what was decided."
    message = "the run is over" if record.state in {COMPLETED, ENDED} else "this site's word on the run was given"
    return RunAlreadyDecidedError(message, advice=advice, run_id=record.run.run_id, state=record.state)


def actor_from_user(local_user: str) -> str:
    """Who the audit log names: the agent for the policy's own word, else the person."""
    return "agent" if local_user == AUTOMATIC_USER else f"user:{local_user}"


def audit_fact(value: str | float | None) -> str | int | None:
    """A rule's value as a fact of an event: a fraction is text there."""
    return str(value) if isinstance(value, float) else value
