"""Taking the site's decision on a run: evaluate, sign, record. The daemon sends the statement afterwards.

Every decision is one transaction: the ledger's row, the signed statement and the audit event are there together or not
at all. A person may decline anything; a person may approve only what the policy permits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.run_spec import RunSpec
from site_agent.approvals.errors import (
    PeersUnlistedError,
    PolicyDeniedError,
    PurposeNeededError,
    RunAlreadyDecidedError,
)
from site_agent.approvals.run_records import PENDING, RunRecord, find_run, unknown_run
from site_agent.approvals.statement import ApprovalStatement, Decision, sign_statement
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_text
from site_agent.db.models import ApprovalRow, RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.policy.evaluate import (
    Allowed,
    Denied,
    SiteLedger,
    evaluate_automatic,
    evaluate_run,
    permitted_purposes,
    stated_purpose,
    unlisted_peers,
)
from site_agent.policy.rules import ANY_PURPOSE, SitePolicy

AUTOMATIC_USER = "policy"
"""Who approves when no person does."""

_EVENT_KINDS = {
    Decision.APPROVED: AuditKind.RUN_APPROVED,
    Decision.REFUSED: AuditKind.RUN_DECLINED,
    Decision.WITHDRAWN: AuditKind.RUN_WITHDRAWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """By what a run is judged: the policy, and what the site itself knows."""

    policy: SitePolicy
    ledger: SiteLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class StewardWord:
    """A person's yes: who, under which purpose (None: the run's own), and whether unlisted keys are accepted."""

    local_user: str
    purpose: str | None = None
    accept_unlisted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    decision: Decision
    local_user: str
    purpose: str | None = None
    reason: str | None = None
    is_automatic: bool = False
    accepted_unlisted: tuple[str, ...] = ()


def approve_run(
    db: SiteDb,
    audit: AuditLog,
    *,
    signer: Signer,
    run_id: str,
    judgement: Judgement,
    word: StewardWord,
    now: datetime,
) -> SignedBody:
    """A person's yes.

    Raises:
        RunUnknownError, RunDocumentInvalidError: there is no such run, or it is not what it says.
        PolicyDeniedError: the policy does not permit it; the refusal is recorded.
        PurposeNeededError: ``purpose`` must be given.
        PeersUnlistedError: sites are unlisted and ``accept_unlisted`` is not set.
        RunAlreadyDecidedError: the site has approved or withdrawn it.
        SiteDatabaseError: nothing was recorded.
    """
    record = db.run_read("find_run", lambda session: find_run(session, run_id))
    run_spec = record.run.run_spec()
    _check_may_follow(record, Decision.APPROVED)
    verdict = evaluate_run(run_spec, judgement.policy, judgement.ledger)
    if isinstance(verdict, Denied):
        record_denial(db, audit, run_id=record.run.run_id, denied=verdict, actor=actor_from_user(word.local_user))
        raise PolicyDeniedError(verdict)
    unlisted = unlisted_peers(run_spec, judgement.ledger)
    if unlisted and not word.accept_unlisted:
        raise PeersUnlistedError(unlisted)
    chosen = _chosen_purpose(run_spec, judgement, word.purpose)
    said = _Verdict(
        decision=Decision.APPROVED, local_user=word.local_user, purpose=chosen, accepted_unlisted=tuple(unlisted)
    )
    return _decide(db, audit, signer=signer, run_id=run_id, verdict=said, now=now)


def approve_automatically(
    db: SiteDb, audit: AuditLog, *, signer: Signer, run_id: str, judgement: Judgement, now: datetime
) -> Allowed | Denied:
    """The policy's own yes, where the run is inside every rule and all its sites are listed; else the unmet rule.

    A run that is denied stays pending for the steward, with the rule's name as its reason.

    Raises:
        RunUnknownError, RunDocumentInvalidError: there is no such run, or it is not what it says.
        RunAlreadyDecidedError: the site's word was given.
        SiteDatabaseError: nothing was recorded.
    """
    record = db.run_read("find_run", lambda session: find_run(session, run_id))
    if record.state != PENDING:
        raise _already_decided(record)
    run_spec = record.run.run_spec()
    verdict = evaluate_automatic(run_spec, judgement.policy, judgement.ledger)
    if isinstance(verdict, Denied):
        record_denial(db, audit, run_id=record.run.run_id, denied=verdict, actor=actor_from_user(AUTOMATIC_USER))
        return verdict
    purpose = stated_purpose(run_spec, judgement.policy, judgement.ledger)
    said = _Verdict(decision=Decision.APPROVED, local_user=AUTOMATIC_USER, purpose=purpose, is_automatic=True)
    _decide(db, audit, signer=signer, run_id=run_id, verdict=said, now=now)
    return verdict


def decline_run(
    db: SiteDb, audit: AuditLog, *, signer: Signer, run_id: str, local_user: str, reason: str, now: datetime
) -> SignedBody:
    """A person's no: a refusal of a pending run, the withdrawal of an approved one. ``reason`` stays at the site.

    Raises:
        RunUnknownError: there is no such run.
        RunAlreadyDecidedError: the site has refused or withdrawn it.
        SiteDatabaseError: nothing was recorded.
    """
    record = db.run_read("find_run", lambda session: find_run(session, run_id))
    decision = Decision.REFUSED if record.state == PENDING else Decision.WITHDRAWN
    said = _Verdict(decision=decision, local_user=local_user, reason=reason)
    return _decide(db, audit, signer=signer, run_id=run_id, verdict=said, now=now)


def record_denial(db: SiteDb, audit: AuditLog, *, run_id: RunId, denied: Denied, actor: str) -> None:
    """Record that a rule stood against a run; the same rule again is not recorded again. Raises SiteDatabaseError."""

    def write(session: Session) -> None:
        row = session.get(RunLedgerRow, run_id)
        if row is None:
            raise unknown_run(run_id)
        if row.reason == denied.rule:
            return
        row.reason = denied.rule
        session.flush()
        audit.append(
            session,
            AuditKind.POLICY_EVALUATED,
            actor,
            outcome="denied",
            run_id=run_id,
            rule=denied.rule,
            value=_fact(denied.value),
            limit=_fact(denied.limit),
        )

    db.run_tx("record_denial", write)


def _decide(
    db: SiteDb, audit: AuditLog, *, signer: Signer, run_id: str, verdict: _Verdict, now: datetime
) -> SignedBody:
    def write(session: Session) -> SignedBody:
        record = find_run(session, run_id)
        _check_may_follow(record, verdict.decision)
        statement = ApprovalStatement(
            run_id=record.run.run_id,
            run_spec_sha256=record.run.run_spec_sha256,
            decision=verdict.decision,
            dataset=record.dataset or "",
            purpose=verdict.purpose,
            local_user=verdict.local_user,
            at=now,
        )
        signed = sign_statement(signer, statement)
        _write_decision(session, statement, signed, verdict)
        audit.append(
            session,
            _EVENT_KINDS[verdict.decision],
            actor_from_user(verdict.local_user),
            run_id=statement.run_id,
            run_spec_sha256=statement.run_spec_sha256,
            dataset=statement.dataset,
            purpose=statement.purpose,
            reason=verdict.reason,
            is_automatic=verdict.is_automatic,
            accepted_unlisted=", ".join(verdict.accepted_unlisted) or None,
        )
        return signed

    return db.run_tx("decide_run", write)


def _write_decision(session: Session, statement: ApprovalStatement, signed: SignedBody, verdict: _Verdict) -> None:
    row = session.get_one(RunLedgerRow, statement.run_id)
    at = instant_text(statement.at)
    row.state = statement.decision.value
    row.reason = verdict.reason
    if statement.decision is Decision.APPROVED:
        row.approved_at, row.approved_by, row.purpose = at, statement.local_user, statement.purpose
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
        )
    )
    session.flush()


def _check_may_follow(record: RunRecord, decision: Decision) -> None:
    """A pending run may be approved or refused, a refused one approved after all, a running one only withdrawn."""
    over = {Decision.WITHDRAWN.value, "completed", "cancelled", "failed"}
    match decision:
        case Decision.APPROVED:
            is_possible = record.state in {PENDING, Decision.REFUSED.value}
        case Decision.REFUSED:
            is_possible = record.state == PENDING
        case Decision.WITHDRAWN:
            is_possible = record.state not in {PENDING, Decision.REFUSED.value, *over}
    if not is_possible:
        raise _already_decided(record)


def _already_decided(record: RunRecord) -> RunAlreadyDecidedError:
    advice = f"'wardround-site runs show {record.run.run_id}' shows what was decided."
    message = "this site's word on the run was given"
    return RunAlreadyDecidedError(message, advice=advice, run_id=record.run.run_id, state=record.state)


def _chosen_purpose(run_spec: RunSpec, judgement: Judgement, purpose: str | None) -> str:
    name = run_spec.data.dataset
    permitted = permitted_purposes(name, judgement.policy, judgement.ledger)
    if purpose is not None:
        if purpose not in permitted and ANY_PURPOSE not in permitted:
            limit = ", ".join(sorted(permitted)) or "none"
            raise PolicyDeniedError(Denied(rule=f"datasets.{name}.purposes", value=purpose, limit=limit))
        return purpose
    stated = stated_purpose(run_spec, judgement.policy, judgement.ledger)
    if stated is not None:
        return stated
    if len(permitted) == 1:
        return next(iter(permitted))
    listed = ", ".join(sorted(permitted))
    message = "the run's own words name no permitted purpose"
    raise PurposeNeededError(message, advice=f"Say --purpose; permitted here: {listed}.", dataset=name)


def actor_from_user(local_user: str) -> str:
    """Who the audit log names: the agent for the policy's own word, else the person."""
    return "agent" if local_user == AUTOMATIC_USER else f"user:{local_user}"


def _fact(value: str | float | None) -> str | int | None:
    return str(value) if isinstance(value, float) else value
