"""What a site took out of use reaches the coordinator: after it was away, after a restart, and no more than is due."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy.orm import Session

from coordinator.services.report_dataset_withdrawn import withdrawal_from_bytes
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.signing.signed import SignedBody, verify_body
from site_agent.approvals.run_records import RunInHand, record_pending_run
from site_agent.audit.store import AuditLog
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import register_dataset, withdraw_dataset
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.supervision.dataset_notices import TELL_AGAIN_S, DatasetNotices

NOW = datetime.fromisoformat("2026-01-31T12:00:00Z")
LATER = datetime.fromisoformat("2026-02-01T08:30:00Z")
SITE = SiteId("st-mary")


class Inspector:
    def inspect(self, description: DataDescription) -> Inspection:
        return Inspection(sha256=Sha256Hex("ab" * 32), n_records=12, n_patients=7)


class Coordinator:
    """Keeps what it is told, or does not answer."""

    def __init__(self) -> None:
        self.told: list[SignedBody] = []
        self.error: Exception | None = None

    async def report_dataset_withdrawn(self, *, statement: SignedBody) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(statement)


class Seconds:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def site(site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand) -> SiteDb:
    """A site that approved a run on ``medical-qa``, and has another dataset that no run named."""
    for name in ("medical-qa", "private"):
        declaration = DatasetDeclaration(
            name=name, path=Path(f"/data/{name}"), format="jsonl", purposes=("research",), description=None
        )
        register_dataset(site_db, audit_log, declaration, inspector=Inspector(), actor="user:jane", now=NOW)
    record_pending_run(site_db, audit_log, run_in_hand, now=NOW)
    return site_db


def approve(site_db: SiteDb, run: RunInHand) -> None:
    def write(session: Session) -> None:
        row = session.get_one(RunLedgerRow, run.run_id)
        row.approved_at, row.dataset = "2026-01-31T12:00:00.000000Z", "medical-qa"

    site_db.run_tx("approve", write)


def notices(site_db: SiteDb, coordinator: Coordinator, seconds: Seconds, signer: EcdsaSigner) -> DatasetNotices:
    seams = SimpleNamespace(db=site_db, client=coordinator, signer=signer, site_id=SITE)
    return DatasetNotices(seams, clock_s=seconds)  # type: ignore[arg-type]


async def test_withdrawal_of_an_approved_dataset_is_told_once_and_nothing_else(
    site: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    coordinator: Coordinator,
    seconds: Seconds,
    signer: EcdsaSigner,
) -> None:
    loop = notices(site, coordinator, seconds, signer)
    approve(site, run_in_hand)
    await loop.tell()
    assert coordinator.told == [], "both are in use"
    for name in ("medical-qa", "private"):
        withdraw_dataset(site, audit_log, name, actor="user:jane", now=LATER)
    for _ in range(3):
        await loop.tell()
    (statement,) = coordinator.told
    # What the coordinator's own reader makes of it, and the key that it will ask for.
    said = withdrawal_from_bytes(verify_body(signer.spki_der, "WR/sig/dataset-withdrawn", statement))
    assert (said.site_id, said.dataset, said.at) == ("st-mary", "medical-qa", LATER)
    assert (said.dataset_sha256, said.reason) == (None, "unspecified")


async def test_dataset_that_no_run_was_approved_for_is_not_named(
    site: SiteDb, audit_log: AuditLog, coordinator: Coordinator, seconds: Seconds, signer: EcdsaSigner
) -> None:
    withdraw_dataset(site, audit_log, "medical-qa", actor="user:jane", now=LATER)
    await notices(site, coordinator, seconds, signer).tell()
    assert coordinator.told == []


async def test_coordinator_that_was_away_is_told_when_it_is_back(
    site: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    coordinator: Coordinator,
    seconds: Seconds,
    signer: EcdsaSigner,
) -> None:
    approve(site, run_in_hand)
    withdraw_dataset(site, audit_log, "medical-qa", actor="user:jane", now=LATER)
    loop = notices(site, coordinator, seconds, signer)
    coordinator.error = CoordinatorUnavailableError("nobody answers")
    with pytest.raises(CoordinatorUnavailableError):
        await loop.tell()
    coordinator.error = None
    await loop.tell()
    assert len(coordinator.told) == 1


async def test_restarted_agent_tells_again_in_the_same_bytes(
    site: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    coordinator: Coordinator,
    seconds: Seconds,
    signer: EcdsaSigner,
) -> None:
    approve(site, run_in_hand)
    withdraw_dataset(site, audit_log, "medical-qa", actor="user:jane", now=LATER)
    for _ in range(2):
        await notices(site, coordinator, seconds, signer).tell()
    first, again = coordinator.told
    assert first == again


async def test_day_later_it_is_told_again_since_a_coordinator_may_have_been_set_back(
    site: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    coordinator: Coordinator,
    seconds: Seconds,
    signer: EcdsaSigner,
) -> None:
    approve(site, run_in_hand)
    withdraw_dataset(site, audit_log, "medical-qa", actor="user:jane", now=LATER)
    loop = notices(site, coordinator, seconds, signer)
    for at_s in (0.0, TELL_AGAIN_S - 1.0, TELL_AGAIN_S, TELL_AGAIN_S + 1.0):
        seconds.now_s = at_s
        await loop.tell()
    assert len(coordinator.told) == 2


@pytest.mark.parametrize(
    ("status", "n_tried"), [("UNIMPLEMENTED", 1), ("INVALID_ARGUMENT", 1), ("PERMISSION_DENIED", 3)]
)
async def test_refusal_is_tried_again_where_it_may_end(
    site: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    coordinator: Coordinator,
    seconds: Seconds,
    signer: EcdsaSigner,
    status: str,
    n_tried: int,
) -> None:
    approve(site, run_in_hand)
    withdraw_dataset(site, audit_log, "medical-qa", actor="user:jane", now=LATER)
    tried = 0

    class Refusing(Coordinator):
        async def report_dataset_withdrawn(self, *, statement: SignedBody) -> None:
            nonlocal tried
            tried += 1
            raise CoordinatorRefusedError("no", status=status, refusal_code="")

    loop = notices(site, Refusing(), seconds, signer)
    for _ in range(3):
        if status == "PERMISSION_DENIED":
            with pytest.raises(CoordinatorRefusedError):
                await loop.tell()
        else:
            await loop.tell()
    assert tried == n_tried
