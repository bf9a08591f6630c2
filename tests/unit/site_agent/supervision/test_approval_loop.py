"""How often the coordinator is asked for runs: at once for a first one, seldom while one is in hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_protocol.clock import SystemClock
from fl_protocol.ids import RunId, Sha256Hex
from site_agent.approvals.errors import RunDocumentInvalidError
from site_agent.approvals.run_records import RunInHand, list_runs, record_pending_run
from site_agent.audit.store import AuditLog
from site_agent.db.models import ApprovalRow, RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.errors import CoordinatorUnavailableError
from site_agent.link.client import RunDocuments, RunSummary
from site_agent.supervision.approval_loop import ApprovalLoop


class CountingClient:
    def __init__(self) -> None:
        self.n_asked = 0
        self.is_down = False

    async def list_pending(self) -> tuple[object, ...]:
        self.n_asked += 1
        if self.is_down:
            raise CoordinatorUnavailableError("nobody answers")
        return ()


class OfferingClient:
    def __init__(self, runs: Sequence[RunInHand]) -> None:
        self._runs = {run.run_id: run for run in runs}

    @staticmethod
    def _summary(run: RunInHand) -> RunSummary:
        return RunSummary(run_id=run.run_id, name=run.name, run_spec_sha256=run.run_spec_sha256, state="ACTIVE")

    async def list_pending(self) -> tuple[RunSummary, ...]:
        return tuple(self._summary(run) for run in self._runs.values())

    async def get_run(self, run_id: RunId) -> RunDocuments:
        run = self._runs[run_id]
        return RunDocuments(
            summary=self._summary(run),
            run_spec_json=run.run_spec_json,
            layout_json=run.layout_json,
            initial_state_sha256=run.initial_state_sha256,
        )


@pytest.fixture
def client() -> CountingClient:
    return CountingClient()


@pytest.fixture
def loop(client: CountingClient, site_db: SiteDb, tmp_path: Path) -> ApprovalLoop:
    seams = SimpleNamespace(client=client, db=site_db)
    return ApprovalLoop(seams, policies=None, identity=None, peers=dict)  # type: ignore[arg-type]


async def asked_in(loop: ApprovalLoop, client: CountingClient, *, looks: int) -> int:
    before = client.n_asked
    for _ in range(looks):
        await loop._see_in_turn()
    return client.n_asked - before


def see_run(site_db: SiteDb, audit_log: AuditLog, run: RunInHand, *, state: str = "pending") -> None:
    record_pending_run(site_db, audit_log, run, now=datetime(2026, 1, 31, tzinfo=UTC))
    site_db.run_tx("state", lambda session: setattr(session.get_one(RunLedgerRow, run.run_id), "state", state))


async def test_coordinator_is_asked_at_every_look_while_no_run_is_in_hand(
    loop: ApprovalLoop, client: CountingClient
) -> None:
    assert await asked_in(loop, client, looks=6) == 6


@pytest.mark.parametrize("state", ["pending", "approved"])
async def test_coordinator_is_asked_at_every_third_look_while_a_run_is_in_hand(
    loop: ApprovalLoop,
    client: CountingClient,
    site_db: SiteDb,
    audit_log: AuditLog,
    run_in_hand: RunInHand,
    state: str,
) -> None:
    see_run(site_db, audit_log, run_in_hand, state=state)
    assert await asked_in(loop, client, looks=9) == 3


async def test_coordinator_is_asked_at_every_look_again_after_the_last_run(
    loop: ApprovalLoop, client: CountingClient, site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand
) -> None:
    see_run(site_db, audit_log, run_in_hand, state="completed")
    assert await asked_in(loop, client, looks=6) == 6


async def test_coordinator_is_asked_at_every_look_while_a_statement_is_unsent(
    loop: ApprovalLoop, client: CountingClient, site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand
) -> None:
    see_run(site_db, audit_log, run_in_hand, state="approved")
    unsent = ApprovalRow(
        run_id=run_in_hand.run_id,
        decision="approved",
        statement_body=b"body",
        signature=b"signature",
        decided_at="2026-01-31T12:00:00.000000Z",
        decided_by="steward",
        is_automatic=False,
        accepted_unlisted_json="[]",
    )
    site_db.run_tx("decide", lambda session: session.add(unsent))
    assert await asked_in(loop, client, looks=6) == 6


async def test_coordinator_that_is_down_is_asked_again_at_the_next_look(
    loop: ApprovalLoop, client: CountingClient, site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand
) -> None:
    see_run(site_db, audit_log, run_in_hand)
    client.is_down = True
    for _ in range(2):
        with pytest.raises(CoordinatorUnavailableError):
            await loop._see_in_turn()
    assert client.n_asked == 2


async def test_run_that_cannot_be_read_keeps_no_other_from_being_seen(
    site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand
) -> None:
    newer = replace(run_in_hand, run_id=RunId("run-" + "z" * 26), run_spec_json=b'{"of": "a newer version"}')
    newer = replace(newer, run_spec_sha256=Sha256Hex(hashlib.sha256(newer.run_spec_json).hexdigest()))
    client = OfferingClient([newer, run_in_hand])
    seams = SimpleNamespace(client=client, db=site_db, audit=audit_log, clock=SystemClock())
    loop = ApprovalLoop(seams, policies=None, identity=None, peers=dict)  # type: ignore[arg-type]
    with pytest.raises(RunDocumentInvalidError):
        await loop._see_in_turn()
    assert [record.run.run_id for record in site_db.run_read("runs", list_runs)] == [run_in_hand.run_id]
