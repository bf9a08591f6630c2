"""A policy file that changes under a running agent: each version is recorded before it counts, a broken one denies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from sqlalchemy.orm import Session

from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.testing.run_specs import SITE_NAMES, pin_of
from site_agent.approvals.approve_run import Judgement, StewardWord, approve_run
from site_agent.approvals.run_records import RunInHand, record_pending_run
from site_agent.audit.store import AuditLog, read_log
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import register_dataset
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.models import DatasetRow, RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.errors import RoundRefusedError
from site_agent.policy.evaluate import SiteLedger
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy.rules import parse_policy
from site_agent.supervision.approved_runs import ApprovedRun, read_approved_run
from site_agent.supervision.judgement import PolicyJudge
from site_agent.supervision.policy_desk import PolicyDesk
from tests.unit.site_agent.conftest import NOW, OWN_NAME, StandingClock


def facts_of(db: SiteDb, kind: str) -> list[dict[str, object]]:
    bodies = [json.loads(row.body) for row in db.run_read("read", read_log).rows]
    return [body["facts"] for body in bodies if body["kind"] == kind]


@pytest.fixture
def policy_file(tmp_path: Path, policy_document: dict[str, object]) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(policy_document))
    return path


@pytest.fixture
def desk(policy_file: Path, site_db: SiteDb, audit_log: AuditLog) -> PolicyDesk:
    return PolicyDesk(policy_file, db=site_db, audit=audit_log)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_records_each_version_once_by_the_digest_of_its_file(
    desk: PolicyDesk, policy_file: Path, site_db: SiteDb
) -> None:
    first = digest_of(policy_file)
    assert desk.load().sha256 == desk.load().sha256 == first
    policy_file.write_text(policy_file.read_text() + "approval_lifetime_days: 7\n")
    assert desk.load().policy.approval_lifetime_days == 7
    assert facts_of(site_db, "policy.loaded") == [
        {"outcome": "loaded", "policy_sha256": first},
        {"outcome": "loaded", "policy_sha256": digest_of(policy_file)},
    ]


@pytest.mark.parametrize(
    "text",
    ["tasks: [instruction-tuning", "taks: []", "tasks: [a]\ntasks: [b]", "- tasks", "\x00"],
    ids=["no YAML", "unknown key", "key twice", "no mapping", "no text"],
)
def test_load_of_a_file_that_was_broken_keeps_no_earlier_version(
    text: str, desk: PolicyDesk, policy_file: Path, site_db: SiteDb
) -> None:
    good = policy_file.read_bytes()
    desk.load()
    policy_file.write_text(text)
    for _ in range(2):
        with pytest.raises(PolicyFaultsError):
            desk.load()
    broken = {"outcome": "unreadable", "policy_sha256": digest_of(policy_file), "n_faults": 1}
    assert facts_of(site_db, "policy.loaded")[1:] == [broken]
    policy_file.write_bytes(good)
    desk.load()
    assert [fact["outcome"] for fact in facts_of(site_db, "policy.loaded")] == ["loaded", "unreadable", "loaded"]


def test_load_of_a_file_that_is_gone_permits_nothing(desk: PolicyDesk, policy_file: Path, site_db: SiteDb) -> None:
    policy_file.unlink()
    with pytest.raises(PolicyFaultsError):
        desk.load()
    assert facts_of(site_db, "policy.loaded") == [{"outcome": "unreadable", "policy_sha256": None, "n_faults": 1}]


def test_load_of_a_version_that_cannot_be_recorded_does_not_count(
    desk: PolicyDesk, site_db: SiteDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SiteDatabaseError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(site_db, "run_tx", fail)
        with pytest.raises(SiteDatabaseError):
            desk.load()
    desk.load()
    assert len(facts_of(site_db, "policy.loaded")) == 1


# The judge: what the file says now, of every round.


class KnownFile:
    def inspect(self, description: DataDescription) -> Inspection:
        del description
        return Inspection(sha256=Sha256Hex("ab" * 32), n_records=120, n_patients=60)


@pytest.fixture
def run(
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    run_in_hand: RunInHand,
    site_ledger: SiteLedger,
    policy_document: dict[str, object],
    tmp_path: Path,
) -> ApprovedRun:
    """A run that was approved over a registered dataset."""
    data = tmp_path / "records.jsonl"
    data.write_text("{}\n")
    declaration = DatasetDeclaration(name="medical-qa", path=data, format="jsonl", purposes=("research",))
    register_dataset(site_db, audit_log, declaration, inspector=KnownFile(), actor="user:jane", now=NOW)
    record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    judgement = Judgement(policy=parse_policy(policy_document), ledger=site_ledger)
    word = StewardWord(local_user="jane")
    approve_run(site_db, audit_log, signer=signer, run_id=run_in_hand.run_id, judgement=judgement, word=word, now=NOW)
    return site_db.run_read("read", lambda session: read_approved_run(session, run_in_hand.run_id))


@pytest.fixture
def judge(
    site_db: SiteDb, audit_log: AuditLog, desk: PolicyDesk, signer: EcdsaSigner, clock: StandingClock
) -> PolicyJudge:
    identity = SimpleNamespace(site_id=OWN_NAME, signing_key_sha256=spki_fingerprint(signer.spki_der))
    peers = {name: pin_of(name) for name in SITE_NAMES}
    return PolicyJudge(site_db, audit_log, policies=desk, identity=identity, peers=lambda: peers, clock=clock)  # type: ignore[arg-type]


def reason_of(judge: PolicyJudge, run: ApprovedRun, *, is_training_ahead: bool = True) -> str | None:
    try:
        judge.permit(run, is_training_ahead=is_training_ahead)
    except RoundRefusedError as error:
        return error.reason
    return None


def test_permit_follows_the_file_without_a_restart_and_names_the_version(
    judge: PolicyJudge, run: ApprovedRun, policy_file: Path, policy_document: dict[str, object], site_db: SiteDb
) -> None:
    first = digest_of(policy_file)
    assert reason_of(judge, run) is None
    policy_file.write_text(yaml.safe_dump({**policy_document, "adapters": {"kinds": ["lora"], "max_rank": 7}}))
    second = digest_of(policy_file)
    assert [reason_of(judge, run), reason_of(judge, run)] == ["adapters.max_rank"] * 2
    # What is narrowed while a site trains stops it before it masks, too.
    assert reason_of(judge, run, is_training_ahead=False) == "adapters.max_rank"
    policy_file.write_text("tasks: [")
    assert reason_of(judge, run) == "policy-unreadable"
    assert facts_of(site_db, "policy.evaluated") == [
        {"run_id": run.run_id, "policy_sha256": first, "outcome": "allowed"},
        {
            "run_id": run.run_id,
            "policy_sha256": second,
            "outcome": "denied",
            "rule": "adapters.max_rank",
            "value": 8,
            "limit": 7,
        },
    ]


def test_permit_ends_with_the_approval(judge: PolicyJudge, run: ApprovedRun, clock: StandingClock) -> None:
    clock.pass_time(days=90, microseconds=-1)
    assert reason_of(judge, run) is None
    clock.pass_time(microseconds=1)
    assert reason_of(judge, run) == "approval-expired"


def test_permit_of_an_approval_that_an_earlier_version_signed_ends_by_the_policy(
    judge: PolicyJudge, run: ApprovedRun, clock: StandingClock, site_db: SiteDb
) -> None:
    def forget(session: Session) -> None:
        session.get_one(RunLedgerRow, run.run_id).expires_at = None

    site_db.run_tx("forget", forget)
    clock.pass_time(days=90)
    assert reason_of(judge, run) == "approval-expired"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"min_records": 121}, "datasets.medical-qa.min_records"),
        ({"min_patients": 61}, "datasets.medical-qa.min_patients"),
        ({"consent": ["broad-consent"]}, "datasets.medical-qa.consent"),
        ({"legal_basis": ["gdpr-9-2-j"]}, "datasets.medical-qa.legal_basis"),
        ({"consent": []}, "datasets.medical-qa.consent"),
        ({"min_records": 120, "min_patients": 60}, None),
    ],
)
def test_permit_holds_the_dataset_to_the_policy(
    rule: dict[str, object],
    reason: str | None,
    judge: PolicyJudge,
    run: ApprovedRun,
    policy_file: Path,
    policy_document: dict[str, object],
) -> None:
    dataset = {"purposes": ["research"], **rule}
    policy_file.write_text(yaml.safe_dump({**policy_document, "datasets": {"medical-qa": dataset}}))
    assert reason_of(judge, run) == reason


def test_permit_of_a_dataset_whose_last_day_is_over_is_refused(
    judge: PolicyJudge, run: ApprovedRun, clock: StandingClock, site_db: SiteDb
) -> None:
    def end(session: Session) -> None:
        session.get_one(DatasetRow, 1).expires_on = NOW.astimezone().date().isoformat()

    site_db.run_tx("end", end)
    assert reason_of(judge, run) is None
    clock.pass_time(days=1)
    assert reason_of(judge, run) == "datasets.medical-qa.expires_on"
