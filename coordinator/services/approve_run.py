"""A site's signed word on a run: approved, refused or withdrawn. Kept as the exact bytes that its key signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import rfc8785
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Approval, Participation, Run, Site
from coordinator.db.rounds import open_round
from coordinator.db.states import ApprovalDecision, SiteState
from coordinator.errors import ConflictError, NotFoundError, NotInCohortError, SiteNotActiveError, WrongPhaseError
from coordinator.rounds.events import SiteReported
from coordinator.rounds.participation_machine import ParticipationEvent, ParticipationState
from coordinator.rounds.run_machine import RunState
from coordinator.services.event_rows import store_event
from coordinator.services.refusals import StatementInvalidError
from coordinator.services.resources import Resources
from coordinator.services.round_access import audit_participation, move_participation, ref_of, site_actor
from coordinator.services.run_specs import run_spec_of
from fl_protocol.audit.events import AuditKind, text_from_instant
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.signing.signed import SignedBody, verify_body

APPROVAL_KIND = "WR/sig/approval"
_MAX_STATEMENT_BYTES = 8192
_MAX_AHEAD = timedelta(minutes=10)
_KEYS = frozenset({"run_id", "run_spec_sha256", "decision", "dataset", "purpose", "local_user", "at"})
"""What a site of 0.1 says."""
_LATER_KEYS = frozenset({"cohort_sha256", "expires_at"})
"""What later ones say besides. One without the other is no statement of anybody's."""
RUN_WITHDRAWN = "run-withdrawn"
"""Why a site is no longer in a round: it took its word on the run back."""
_NO = frozenset({ApprovalDecision.WITHDRAWN, ApprovalDecision.REFUSED})
_AUDIT_KINDS = {
    ApprovalDecision.APPROVED: AuditKind.RUN_APPROVED,
    ApprovalDecision.REFUSED: AuditKind.RUN_DECLINED,
    ApprovalDecision.WITHDRAWN: AuditKind.RUN_WITHDRAWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalStatement:
    """What a site says of a run, and who said it there.

    Attributes:
        cohort_sha256: of the roster that it means; None from a site of 0.1.
        expires_at: the first instant at which its yes holds no more; None without an end (0.1), and of any other word.
    """

    run_id: str
    run_spec_sha256: str
    decision: ApprovalDecision
    dataset: str | None
    purpose: str | None
    local_user: str
    at: datetime
    cohort_sha256: str | None = None
    expires_at: datetime | None = None


def statement_from_bytes(body: bytes) -> ApprovalStatement:
    """Read a statement.

    Raises:
        StatementInvalidError: the bytes are no canonical JSON (RFC 8785) with exactly the keys of a statement.
    """
    try:
        document = json.loads(body) if len(body) <= _MAX_STATEMENT_BYTES else None
        is_canonical = isinstance(document, dict) and rfc8785.dumps(document) == body
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise StatementInvalidError("the statement is no JSON") from error
    if not isinstance(document, dict) or not is_canonical or set(document) not in (_KEYS, _KEYS | _LATER_KEYS):
        listed = ", ".join(sorted(_KEYS | _LATER_KEYS))
        raise StatementInvalidError(f"a statement is canonical JSON with the keys {listed}")
    for key, value in document.items():
        is_optional = key in {"dataset", "purpose", "expires_at"}
        if not isinstance(value, str) and not (is_optional and value is None):
            raise StatementInvalidError("a value of the statement is not text", key=key)
    try:
        decision = ApprovalDecision(document["decision"])
        at = _instant(document["at"])
        expires_at = None if document.get("expires_at") is None else _instant(document["expires_at"])
    except ValueError as error:
        raise StatementInvalidError("the statement's decision or instant is not one") from error
    _check_end(document, decision, at=at, expires_at=expires_at)
    return ApprovalStatement(
        run_id=document["run_id"],
        run_spec_sha256=document["run_spec_sha256"],
        decision=decision,
        dataset=document["dataset"],
        purpose=document["purpose"],
        local_user=document["local_user"],
        at=at,
        cohort_sha256=document.get("cohort_sha256"),
        expires_at=expires_at,
    )


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise StatementInvalidError("the statement's instant has no time zone")
    return at.astimezone(UTC)


def _check_end(
    document: Mapping[str, object], decision: ApprovalDecision, *, at: datetime, expires_at: datetime | None
) -> None:
    """A yes that can end says when, after it was said; any other word has no end."""
    if "expires_at" not in document:
        return
    if (expires_at is not None) != (decision is ApprovalDecision.APPROVED):
        raise StatementInvalidError("an approval says when it ends, and nothing else does", decision=decision.value)
    if expires_at is not None and expires_at <= at:
        raise StatementInvalidError("the approval ends before it begins")


def approve_run(resources: Resources, *, site_id: SiteId, run_id: RunId, statement: SignedBody) -> None:
    """Record what a site says of a run. The same statement again is the same; a newer one replaces it.

    Raises:
        StatementInvalidError: malformed, not signed by the site's enrolled key, or about another run or RunSpec.
        NotFoundError: there is no such run, or it is still a draft.
        NotInCohortError: the site is not in the run's cohort, or enrolled with another key than the RunSpec names.
        SiteNotActiveError: the site is not ENROLLED.
        WrongPhaseError: the run has ended.
        ConflictError: a newer statement of this site is known.
    """
    said = statement_from_bytes(statement.body)
    now = resources.now()
    if said.at > now + _MAX_AHEAD:
        raise StatementInvalidError("the statement is dated in the future; compare the clocks", at=said.at.isoformat())

    def record(session: Session) -> bool:
        run = _open_run(session, run_id)
        _check_speaker(session, run, site_id=site_id, statement=statement)
        if said.run_id != run_id or said.run_spec_sha256 != run.run_spec_sha256:
            raise StatementInvalidError("the statement is about another run or another RunSpec", run_id=run_id)
        if said.cohort_sha256 not in (None, run_spec_of(run.run_spec_json).cohort.digest()):
            raise StatementInvalidError("the statement is about another cohort", run_id=run_id)
        held = session.get(Approval, (run_id, site_id))
        if held is not None and held.statement_body == statement.body:
            return False
        if held is not None and held.at >= said.at:
            raise ConflictError("a newer statement of this site about this run is known", run_id=run_id)
        row = Approval(
            run_id=run_id,
            site_id=site_id,
            decision=said.decision.value,
            statement_body=statement.body,
            statement_signature=statement.signature,
            at=said.at,
            expires_at=said.expires_at,
        )
        session.merge(row)
        session.flush()
        facts = {
            "run_id": run_id,
            "site_id": site_id,
            "run_spec_sha256": run.run_spec_sha256,
            "by": said.local_user[:64],
            "expires_at": None if said.expires_at is None else text_from_instant(said.expires_at),
        }
        left = _leave_round(session, run_id, site_id, now=now) if said.decision in _NO else None
        append_audit(session, _AUDIT_KINDS[said.decision], actor=site_actor(site_id), facts=facts, now=now)
        if left is not None:
            audit_participation(session, left, actor=site_actor(site_id), now=now)
        return True

    if resources.db.run_tx("approve_run", record):
        resources.wake_driver()


def withdraw_approval(resources: Resources, *, site_id: SiteId, run_id: RunId, statement: SignedBody) -> None:
    """Record that a site takes its word back: ``approve_run`` for a statement that says so.

    Raises:
        StatementInvalidError: the statement says something else; and what ``approve_run`` raises.
    """
    if statement_from_bytes(statement.body).decision is not ApprovalDecision.WITHDRAWN:
        raise StatementInvalidError("this takes a statement whose decision is `withdrawn`", run_id=run_id)
    approve_run(resources, site_id=site_id, run_id=run_id, statement=statement)


def _leave_round(session: Session, run_id: RunId, site_id: SiteId, *, now: datetime) -> Participation | None:
    """Take a site that withdrew out of the round that is open; its row where that changed anything.

    The site declines the round itself too, but it may be killed between its two words, and the others would wait.
    """
    round_row = open_round(session, run_id)
    if round_row is None:
        return None
    row = session.get(Participation, (run_id, round_row.round_index, round_row.round_attempt, site_id))
    if row is None or ParticipationState(row.state) is ParticipationState.COUNTED:
        # Its update is in the sum, and cannot be taken out of it.
        return None
    if not move_participation(row, ParticipationEvent.REFUSED, now=now, reason=RUN_WITHDRAWN):
        return None
    store_event(session, SiteReported(site_id=site_id), ref_of(round_row), now=now)
    return row


def _open_run(session: Session, run_id: RunId) -> Run:
    run = session.get(Run, run_id)
    if run is None or run.state == RunState.DRAFT.value:
        raise NotFoundError("there is no such run", run_id=run_id)
    if RunState(run.state).is_final:
        raise WrongPhaseError(f"the run is {run.state}", run_id=run_id, state=run.state)
    return run


def _check_speaker(session: Session, run: Run, *, site_id: SiteId, statement: SignedBody) -> None:
    site = session.get(Site, site_id)
    if site is None or site.state != SiteState.ENROLLED.value or site.signing_spki is None:
        raise SiteNotActiveError("the site is not enrolled", site_id=site_id)
    pin = run_spec_of(run.run_spec_json).cohort.pins.get(site_id)
    if pin is None or pin != site.signing_key_sha256:
        raise NotInCohortError("the run's cohort does not have this site with its present key", run_id=run.run_id)
    try:
        verify_body(site.signing_spki, APPROVAL_KIND, statement)
    except ProtocolError as error:
        raise StatementInvalidError("the statement is not signed by the site's key", site_id=site_id) from error
