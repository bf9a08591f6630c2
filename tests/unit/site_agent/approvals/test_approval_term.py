"""An approval ends: as it was signed, never later than the policy lets it, and may be said again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from fl_protocol.signing.keys import EcdsaSigner
from site_agent.approvals.approve_run import Judgement, StewardWord, approve_run, decline_run, withdraw_run
from site_agent.approvals.errors import (
    ExpiryInvalidError,
    PolicyDeniedError,
    RunAlreadyDecidedError,
    RunNotApprovedError,
)
from site_agent.approvals.run_records import RunInHand, find_run, record_pending_run, unsent_statements
from site_agent.approvals.statement import Decision
from site_agent.approvals.withdraw_dataset import withdraw_dataset_and_runs
from site_agent.audit.store import AuditLog, read_log
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import register_dataset
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.errors import RoundRefusedError
from site_agent.policy.evaluate import Allowed, ApprovalTerm, Denied, SiteLedger, evaluate_term
from site_agent.policy.rules import SitePolicy, parse_policy
from site_agent.supervision.approved_runs import check_term, read_approved_run

Approve = Callable[..., dict[str, object]]
NOW = datetime.fromisoformat("2026-01-31T12:00:00Z")
DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)


@pytest.fixture
def judgement(policy_document: dict[str, object], site_ledger: SiteLedger) -> Judgement:
    policy = parse_policy({**policy_document, "approval_lifetime_days": 10})
    return Judgement(policy=policy, ledger=site_ledger, policy_sha256="0f" * 32)


@pytest.fixture
def run_id(site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand) -> str:
    assert record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    return run_in_hand.run_id


@pytest.fixture
def approve(site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, judgement: Judgement, run_id: str) -> Approve:
    def say(*, until: datetime | None = None, now: datetime = NOW) -> dict[str, object]:
        word = StewardWord(local_user="jane", until=until)
        signed = approve_run(site_db, audit_log, signer=signer, run_id=run_id, judgement=judgement, word=word, now=now)
        return dict(json.loads(signed.body))

    return say


def events(db: SiteDb, kind: str) -> list[dict[str, object]]:
    bodies = [json.loads(row.body) for row in db.run_read("read", read_log).rows]
    return [body["facts"] for body in bodies if body["kind"] == kind]


def term_reason(db: SiteDb, run_id: str, now: datetime) -> str | None:
    try:
        db.run_read("term", lambda session: check_term(session, run_id, now))  # type: ignore[arg-type]
    except RoundRefusedError as error:
        return error.reason
    return None


def test_approval_without_a_named_end_ends_when_the_policy_says(site_db: SiteDb, approve: Approve, run_id: str) -> None:
    statement = approve()
    assert statement["expires_at"] == "2026-02-10T12:00:00.000000Z"
    (event,) = events(site_db, "run.approved")
    assert (event["expires_at"], event["policy_sha256"]) == ("2026-02-10T12:00:00.000000Z", "0f" * 32)
    assert term_reason(site_db, run_id, NOW + 10 * DAY - MOMENT) is None
    assert term_reason(site_db, run_id, NOW + 10 * DAY) == "approval-expired"


def test_approval_with_a_named_end_ends_then_and_never_beyond_the_policy(approve: Approve) -> None:
    with pytest.raises(ExpiryInvalidError):
        approve(until=NOW)
    with pytest.raises(PolicyDeniedError) as caught:
        approve(until=NOW + 10 * DAY + MOMENT)
    assert caught.value.denied == Denied(rule="approval_lifetime_days", value=11, limit=10)
    assert approve(until=NOW + 10 * DAY)["expires_at"] == "2026-02-10T12:00:00.000000Z"


def test_approval_that_ended_is_said_again_and_one_that_stands_only_with_another_end(
    site_db: SiteDb, approve: Approve
) -> None:
    approve(until=NOW + DAY)
    with pytest.raises(RunAlreadyDecidedError):
        approve(now=NOW + DAY - MOMENT)
    assert approve(until=NOW + 5 * DAY, now=NOW + MOMENT)["expires_at"] == "2026-02-05T12:00:00.000000Z"
    assert approve(now=NOW + 5 * DAY)["expires_at"] == "2026-02-15T12:00:00.000000Z"
    assert len(site_db.run_read("unsent", unsent_statements)) == 3


def test_approval_of_an_earlier_version_ends_by_the_policy_alone(judgement: Judgement) -> None:
    unsigned = ApprovalTerm(approved_at=NOW, ends_at=None)
    assert evaluate_term(unsigned, judgement.policy, NOW + 10 * DAY - MOMENT) == Allowed()
    verdict = evaluate_term(unsigned, judgement.policy, NOW + 10 * DAY)
    assert verdict == Denied(rule="approval-expired", value="2026-02-10 12:00 UTC", limit="2026-02-10 12:00 UTC")


def test_policy_with_a_shorter_life_ends_approvals_that_were_signed_for_longer() -> None:
    term = ApprovalTerm(approved_at=NOW, ends_at=NOW + 90 * DAY)
    assert evaluate_term(term, SitePolicy(), NOW + 89 * DAY) == Allowed()
    assert isinstance(evaluate_term(term, SitePolicy(approval_lifetime_days=7), NOW + 7 * DAY), Denied)


def test_withdraw_run_is_for_an_approved_run_and_for_good(
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    approve: Approve,
    run_id: str,
) -> None:
    def withdraw() -> dict[str, object]:
        signed = withdraw_run(
            site_db, audit_log, signer=signer, run_id=run_id, local_user="jane", reason="no consent", now=NOW
        )
        return dict(json.loads(signed.body))

    with pytest.raises(RunNotApprovedError):
        withdraw()
    approve()
    statement = withdraw()
    assert (statement["decision"], statement["expires_at"], statement["purpose"]) == ("withdrawn", None, None)
    assert "no consent" not in json.dumps(statement)
    with pytest.raises(RunAlreadyDecidedError):
        withdraw()
    with pytest.raises(RunAlreadyDecidedError):
        approve(until=NOW + DAY)
    with pytest.raises(RoundRefusedError) as caught:
        site_db.run_read("read", lambda session: read_approved_run(session, run_id))  # type: ignore[arg-type]
    assert caught.value.reason == "run-withdrawn"


def test_withdraw_run_that_was_declined_has_nothing_to_take_back(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, run_id: str
) -> None:
    said = {"signer": signer, "run_id": run_id, "local_user": "jane", "reason": "no", "now": NOW}
    decline_run(site_db, audit_log, **said)  # type: ignore[arg-type]
    with pytest.raises(RunNotApprovedError):
        withdraw_run(site_db, audit_log, **said)  # type: ignore[arg-type]


class KnownFile:
    def inspect(self, description: DataDescription) -> Inspection:
        del description
        return Inspection(sha256="ab" * 32, n_records=120, n_patients=60)  # type: ignore[arg-type]


@pytest.fixture
def medical_qa(site_db: SiteDb, audit_log: AuditLog, tmp_path: Path) -> str:
    declaration = DatasetDeclaration(
        name="medical-qa", path=tmp_path / "records.jsonl", format="jsonl", purposes=("research",)
    )
    register_dataset(site_db, audit_log, declaration, inspector=KnownFile(), actor="user:jane", now=NOW)
    return declaration.name


def test_withdraw_dataset_withdraws_every_run_that_was_approved_over_it_and_no_other(
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    approve: Approve,
    run_id: str,
    run_in_hand: RunInHand,
    medical_qa: str,
) -> None:
    approve()
    waiting = replace(run_in_hand, run_id="run-" + "c" * 26)
    record_pending_run(site_db, audit_log, waiting, now=NOW)
    other = replace(run_in_hand, run_id="run-" + "d" * 26)
    record_pending_run(site_db, audit_log, other, now=NOW)

    def over_another_dataset(session: Session) -> None:
        row = session.get_one(RunLedgerRow, other.run_id)
        row.dataset, row.state = "phenotypes", "approved"

    site_db.run_tx("other", over_another_dataset)
    withdrawal = withdraw_dataset_and_runs(
        site_db, audit_log, medical_qa, signer=signer, local_user="jane", now=NOW + DAY
    )
    assert withdrawal.run_ids == (run_id,)
    states = {
        name: site_db.run_read("find", lambda session, name=name: find_run(session, name)).state
        for name in (run_id, waiting.run_id, other.run_id)
    }
    assert states == {run_id: "withdrawn", waiting.run_id: "pending", other.run_id: "approved"}
    last = site_db.run_read("unsent", unsent_statements)[-1]
    assert (last.decision, last.run_id) == (Decision.WITHDRAWN, run_id)
    (event,) = events(site_db, "run.withdrawn")
    assert (event["run_id"], event["reason"]) == (run_id, "dataset-withdrawn")


def test_withdraw_dataset_whose_runs_cannot_be_withdrawn_withdraws_nothing(
    site_db: SiteDb,
    audit_log: AuditLog,
    approve: Approve,
    run_id: str,
    medical_qa: str,
) -> None:
    approve()

    class NoKey:
        spki_der = b""

        def sign(self, message: bytes) -> bytes:
            raise SiteDatabaseError("the key is gone")

    with pytest.raises(SiteDatabaseError):
        withdraw_dataset_and_runs(
            site_db,
            audit_log,
            medical_qa,
            signer=NoKey(),
            local_user="jane",
            now=NOW,  # type: ignore[arg-type]
        )
    assert site_db.run_read("find", lambda session: find_run(session, run_id)).state == "approved"
    assert events(site_db, "dataset.withdrawn") == []
