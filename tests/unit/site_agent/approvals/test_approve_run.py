from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import select

from fl_protocol.packing import pack
from fl_protocol.signing.keys import EcdsaSigner, verify_signature
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.testing.run_specs import pin_of
from site_agent.approvals.approve_run import (
    Judgement,
    StewardWord,
    approve_automatically,
    approve_run,
    decline_run,
)
from site_agent.approvals.errors import (
    PeersUnlistedError,
    PolicyDeniedError,
    PurposeNeededError,
    RunAlreadyDecidedError,
    RunDocumentInvalidError,
    RunUnknownError,
)
from site_agent.approvals.run_records import (
    RunInHand,
    find_run,
    is_paused,
    list_runs,
    mark_statement_sent,
    record_pending_run,
    set_paused,
    unsent_statements,
)
from site_agent.approvals.statement import Decision
from site_agent.audit.store import AuditLog, read_log
from site_agent.db.models import ApprovalRow
from site_agent.db.tx import SiteDb
from site_agent.policy.evaluate import Allowed, DatasetFacts, Denied, SiteLedger
from site_agent.policy.rules import SitePolicy, parse_policy

NOW = datetime.fromisoformat("2026-01-31T12:00:00Z")
JANE = StewardWord(local_user="jane")


@pytest.fixture
def judgement(open_policy: SitePolicy, site_ledger: SiteLedger) -> Judgement:
    return Judgement(policy=open_policy, ledger=site_ledger)


@pytest.fixture
def run_id(site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand) -> str:
    assert record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    return run_in_hand.run_id


def state_of(db: SiteDb, run_id: str) -> tuple[str, str | None]:
    record = db.run_read("find", lambda session: find_run(session, run_id))
    return record.state, record.reason


def kinds(db: SiteDb) -> list[str]:
    return [json.loads(row.body)["kind"] for row in db.run_read("read", read_log).rows]


def test_approve_run_signs_the_exact_statement_that_waits_to_be_sent(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str, run_spec: RunSpec
) -> None:
    signed = approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=JANE, now=NOW)
    # RFC 8785: keys sorted, no white space; the names are plain, so sorting and separators are all there is to it.
    roster = json.dumps(dict(run_spec.cohort.pins), sort_keys=True, separators=(",", ":"))
    cohort_sha256 = hashlib.sha256(roster.encode()).hexdigest()
    # 90 days after the last of January: 28 of February, 31, 30, and the first of May.
    assert (
        signed.body
        == (
            f'{{"at":"2026-01-31T12:00:00.000000Z","cohort_sha256":"{cohort_sha256}","dataset":"medical-qa",'
            '"decision":"approved","expires_at":"2026-05-01T12:00:00.000000Z","local_user":"jane",'
            f'"purpose":"research","run_id":"{run_id}","run_spec_sha256":"{run_spec.digest()}"}}'
        ).encode()
    )
    verify_signature(signer.spki_der, pack(b"WR/sig/approval", signed.body), signed.signature)
    (unsent,) = site_db.run_read("unsent", unsent_statements)
    assert (unsent.statement, unsent.decision) == (signed, Decision.APPROVED)
    assert state_of(site_db, run_id) == ("approved", None)
    assert kinds(site_db) == ["run.state", "run.approved"]
    mark_statement_sent(site_db, approval_id=unsent.approval_id, now=NOW)
    assert site_db.run_read("unsent", unsent_statements) == ()


def test_approve_run_against_the_policy_is_refused_and_recorded_once(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str
) -> None:
    closed = replace(judgement, policy=SitePolicy())
    for _ in range(2):
        with pytest.raises(PolicyDeniedError) as caught:
            approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=closed, word=JANE, now=NOW)
    assert caught.value.denied.rule == "tasks"
    assert state_of(site_db, run_id) == ("pending", "tasks")
    assert kinds(site_db) == ["run.state", "policy.evaluated"]
    assert site_db.run_read("unsent", unsent_statements) == ()


def test_approve_run_with_unlisted_peers_needs_a_word_that_is_recorded(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str
) -> None:
    alone = replace(judgement, ledger=replace(judgement.ledger, peers={"charite": pin_of("charite")}))
    with pytest.raises(PeersUnlistedError) as caught:
        approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=alone, word=JANE, now=NOW)
    assert caught.value.names == ("ucsf",)
    word = replace(JANE, accept_unlisted=True)
    approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=alone, word=word, now=NOW)
    accepted = site_db.run_read("read", lambda s: s.scalars(select(ApprovalRow.accepted_unlisted_json)).one())
    assert json.loads(accepted) == ["ucsf"]
    last = json.loads(site_db.run_read("read", read_log).rows[-1].body)
    assert (last["actor"], last["facts"]["accepted_unlisted"]) == ("user:jane", "ucsf")


def test_approve_run_with_two_permitted_purposes_needs_one_of_them(
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    policy_document: dict[str, object],
    site_ledger: SiteLedger,
    run_id: str,
) -> None:
    purposes = ["research", "quality"]
    policy = parse_policy({**policy_document, "datasets": {"medical-qa": {"purposes": purposes}}})
    facts = DatasetFacts(purposes=frozenset(purposes), n_records=100, n_patients=40)
    judgement = Judgement(policy=policy, ledger=replace(site_ledger, datasets={"medical-qa": facts}))

    def approve(purpose: str | None) -> str:
        word = replace(JANE, purpose=purpose)
        signed = approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=word, now=NOW)
        return str(json.loads(signed.body)["purpose"])

    with pytest.raises(PurposeNeededError):
        approve(None)
    with pytest.raises(PolicyDeniedError):
        approve("billing")
    assert approve("quality") == "quality"


def test_approve_automatically_inside_every_rule_is_the_policys_word(
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    policy_document: dict[str, object],
    site_ledger: SiteLedger,
    make_run_spec: Callable[..., RunSpec],
    run_in_hand: RunInHand,
) -> None:
    run_spec = make_run_spec({"purpose": "research: questions"})
    run = replace(run_in_hand, run_spec_sha256=run_spec.digest(), run_spec_json=run_spec.canonical_bytes())
    record_pending_run(site_db, audit_log, run, now=NOW)
    judgement = Judgement(policy=parse_policy({**policy_document, "approval": "automatic"}), ledger=site_ledger)
    verdict = approve_automatically(site_db, audit_log, signer=signer, run_id=run.run_id, judgement=judgement, now=NOW)
    assert verdict == Allowed()
    (unsent,) = site_db.run_read("unsent", unsent_statements)
    statement = json.loads(unsent.statement.body)
    assert (statement["local_user"], statement["purpose"]) == ("policy", "research")
    with pytest.raises(RunAlreadyDecidedError):
        approve_automatically(site_db, audit_log, signer=signer, run_id=run.run_id, judgement=judgement, now=NOW)


def test_approve_automatically_under_manual_policy_leaves_the_run_to_a_person(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str
) -> None:
    verdict = approve_automatically(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, now=NOW)
    assert isinstance(verdict, Denied)
    assert state_of(site_db, run_id) == ("pending", "approval")
    assert site_db.run_read("unsent", unsent_statements) == ()


def decline(db: SiteDb, audit: AuditLog, signer: EcdsaSigner, run_id: str) -> str:
    signed = decline_run(db, audit, signer=signer, run_id=run_id, local_user="jane", reason="no vote", now=NOW)
    assert b"no vote" not in signed.body
    return str(json.loads(signed.body)["decision"])


def test_decline_run_pending_is_refused_then_may_be_approved_after_all(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str
) -> None:
    assert decline(site_db, audit_log, signer, run_id) == "refused"
    assert state_of(site_db, run_id) == ("refused", "no vote")
    with pytest.raises(RunAlreadyDecidedError):
        decline(site_db, audit_log, signer, run_id)
    approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=JANE, now=NOW)
    assert state_of(site_db, run_id) == ("approved", None)


def test_decline_run_approved_is_withdrawn_for_good(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str
) -> None:
    approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=JANE, now=NOW)
    with pytest.raises(RunAlreadyDecidedError):
        approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=JANE, now=NOW)
    assert decline(site_db, audit_log, signer, run_id) == "withdrawn"
    for attempt in (
        lambda: decline(site_db, audit_log, signer, run_id),
        lambda: approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=JANE, now=NOW),
    ):
        with pytest.raises(RunAlreadyDecidedError):
            attempt()
    assert kinds(site_db) == ["run.state", "run.approved", "run.withdrawn"]


def test_record_pending_run_again_is_no_news(site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand) -> None:
    assert record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    assert not record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    assert len(site_db.run_read("list", list_runs)) == 1


def test_record_pending_run_whose_bytes_are_others_is_refused(
    site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand, make_run_spec: Callable[..., RunSpec]
) -> None:
    altered = replace(run_in_hand, run_spec_json=run_in_hand.run_spec_json + b" ")
    with pytest.raises(RunDocumentInvalidError):
        record_pending_run(site_db, audit_log, altered, now=NOW)
    record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    other = make_run_spec({"rounds": 6})
    swapped = replace(run_in_hand, run_spec_json=other.canonical_bytes(), run_spec_sha256=other.digest())
    with pytest.raises(RunDocumentInvalidError, match="another specification"):
        record_pending_run(site_db, audit_log, swapped, now=NOW)


def test_find_run_unknown_says_so(site_db: SiteDb) -> None:
    with pytest.raises(RunUnknownError):
        site_db.run_read("find", lambda session: find_run(session, "run-none"))


def test_set_paused_is_a_recorded_switch(site_db: SiteDb, audit_log: AuditLog) -> None:
    assert not site_db.run_read("paused", is_paused)
    set_paused(site_db, audit_log, is_paused=True, actor="user:jane", now=NOW)
    assert site_db.run_read("paused", is_paused)
    set_paused(site_db, audit_log, is_paused=False, actor="user:jane", now=NOW)
    assert not site_db.run_read("paused", is_paused)
    assert kinds(site_db) == ["run.paused", "run.resumed"]
