"""Taking the site's decision on a run: evaluate, sign, record. The daemon sends the statement afterwards.

Every decision is one transaction: the ledger's row, the signed statement and the audit event are there together or not
at all. A person may decline anything; a person may approve only what the policy permits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.run_spec import RunSpec
from site_agent.approvals.decisions import (
    AUTOMATIC_USER,
    Renewal,
    Verdict,
    actor_from_user,
    already_decided,
    audit_fact,
    check_may_follow,
    decide,
)
from site_agent.approvals.errors import (
    ExpiryInvalidError,
    PeersUnlistedError,
    PolicyDeniedError,
    PurposeNeededError,
    RunNotApprovedError,
)
from site_agent.approvals.run_records import PENDING, find_run, unknown_run
from site_agent.approvals.statement import Decision
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_text
from site_agent.db.models import RunLedgerRow
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """By what a run is judged: the policy, which version of it, and what the site itself knows."""

    policy: SitePolicy
    ledger: SiteLedger
    policy_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StewardWord:
    """A person's yes.

    Attributes:
        local_user: who.
        purpose: under which; None: the run's own.
        accept_unlisted: whether keys that nobody compared are accepted.
        until: the first instant at which the yes holds no more; None: as long as the policy lets it.
    """

    local_user: str
    purpose: str | None = None
    accept_unlisted: bool = False
    until: datetime | None = None


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
    """A person's yes; said again with another ``until``, or after it ended, it takes the place of the one before.

    Raises:
        RunUnknownError, RunDocumentInvalidError: there is no such run, or it is not what it says.
        PolicyDeniedError: the policy does not permit it; the refusal is recorded.
        PurposeNeededError: ``purpose`` must be given.
        PeersUnlistedError: sites are unlisted and ``accept_unlisted`` is not set.
        ExpiryInvalidError: ``until`` is not in the future.
        RunAlreadyDecidedError: the site has withdrawn it, or its approval stands.
        SiteDatabaseError: nothing was recorded.
    """
    record = db.run_read("find_run", lambda session: find_run(session, run_id))
    run_spec = record.run.run_spec()
    renewal = Renewal(is_asked_for=word.until is not None, policy=judgement.policy, now=now)
    check_may_follow(record, Decision.APPROVED, renewal=renewal)
    verdict = evaluate_run(run_spec, judgement.policy, judgement.ledger)
    if isinstance(verdict, Denied):
        record_denial(db, audit, run_id=record.run.run_id, denied=verdict, judgement=judgement, user=word.local_user)
        raise PolicyDeniedError(verdict)
    unlisted = unlisted_peers(run_spec, judgement.ledger)
    if unlisted and not word.accept_unlisted:
        raise PeersUnlistedError(unlisted)
    said = Verdict(
        decision=Decision.APPROVED,
        local_user=word.local_user,
        purpose=_chosen_purpose(run_spec, judgement, word.purpose),
        accepted_unlisted=tuple(unlisted),
        expires_at=_chosen_end(judgement.policy, word.until, now),
        policy_sha256=judgement.policy_sha256,
    )
    return db.run_tx(
        "decide_run",
        lambda session: decide(session, audit, signer=signer, run_id=run_id, verdict=said, now=now, renewal=renewal),
    )


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
        raise already_decided(record)
    run_spec = record.run.run_spec()
    verdict = evaluate_automatic(run_spec, judgement.policy, judgement.ledger)
    if isinstance(verdict, Denied):
        record_denial(db, audit, run_id=record.run.run_id, denied=verdict, judgement=judgement, user=AUTOMATIC_USER)
        return verdict
    purpose = stated_purpose(run_spec, judgement.policy, judgement.ledger)
    said = Verdict(
        decision=Decision.APPROVED,
        local_user=AUTOMATIC_USER,
        purpose=purpose,
        is_automatic=True,
        expires_at=_chosen_end(judgement.policy, None, now),
        policy_sha256=judgement.policy_sha256,
    )
    db.run_tx("decide_run", lambda session: decide(session, audit, signer=signer, run_id=run_id, verdict=said, now=now))
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

    def write(session: Session) -> SignedBody:
        is_pending = find_run(session, run_id).state == PENDING
        decision = Decision.REFUSED if is_pending else Decision.WITHDRAWN
        said = Verdict(decision=decision, local_user=local_user, reason=reason)
        return decide(session, audit, signer=signer, run_id=run_id, verdict=said, now=now)

    return db.run_tx("decide_run", write)


def withdraw_run(
    db: SiteDb, audit: AuditLog, *, signer: Signer, run_id: str, local_user: str, reason: str, now: datetime
) -> SignedBody:
    """A person takes the site's approval back, for good. ``reason`` stays at the site.

    Raises:
        RunUnknownError: there is no such run.
        RunNotApprovedError: nothing was approved that could be taken back.
        RunAlreadyDecidedError: it was withdrawn before, or the run is over.
        SiteDatabaseError: nothing was recorded.
    """

    def write(session: Session) -> SignedBody:
        record = find_run(session, run_id)
        if record.state in {PENDING, Decision.REFUSED.value}:
            message = "this site has not approved the run, so there is nothing to withdraw"
            advice = f"'wardround-site runs decline {record.run.run_id} --reason TEXT' says no to a run that waits."
            raise RunNotApprovedError(message, advice=advice, run_id=record.run.run_id, state=record.state)
        said = Verdict(decision=Decision.WITHDRAWN, local_user=local_user, reason=reason)
        return decide(session, audit, signer=signer, run_id=run_id, verdict=said, now=now)

    return db.run_tx("withdraw_run", write)


def record_denial(
    db: SiteDb, audit: AuditLog, *, run_id: RunId, denied: Denied, judgement: Judgement, user: str
) -> None:
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
            actor_from_user(user),
            outcome="denied",
            run_id=run_id,
            rule=denied.rule,
            value=audit_fact(denied.value),
            limit=audit_fact(denied.limit),
            policy_sha256=judgement.policy_sha256,
        )

    db.run_tx("record_denial", write)


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


def _chosen_end(policy: SitePolicy, until: datetime | None, now: datetime) -> datetime:
    """When the approval ends: as the person says, and no later than the policy lets it."""
    days = policy.approval_lifetime_days
    latest = now + timedelta(days=days)
    if until is None:
        return latest
    if until <= now:
        message = "an approval ends after it begins: --until is not in the future"
        raise ExpiryInvalidError(message, advice="Name a later day, or leave --until out.", until=instant_text(until))
    if until > latest:
        asked = -((now - until) // timedelta(days=1))
        raise PolicyDeniedError(Denied(rule="approval_lifetime_days", value=asked, limit=days))
    return until
