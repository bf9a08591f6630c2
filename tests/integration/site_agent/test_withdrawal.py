"""A steward takes the site's word back in the middle of a round: at once, whole, and also when the power goes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from fl_protocol.clock import SystemClock
from fl_protocol.ids import RunId
from fl_protocol.testing.entropy import seeded_signer
from site_agent.approvals.approve_run import withdraw_run
from site_agent.audit.store import AuditLog, read_log
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import open_site_db
from site_agent.link import instructions as asked
from site_agent.session.events import DeclineKind, Step

FederationOf = Callable[..., Any]
AT_ONCE_S = 2.0


class SlowTrainer:
    """Trains for ever, and notes when it is killed."""

    def __init__(self) -> None:
        self.n_started = 0
        self.killed_at: float | None = None

    async def run_training_job(self, job_dir: Any, job: Any, *, on_progress: Any) -> Any:
        self.n_started += 1
        (job_dir / "payload.safetensors").write_bytes(b"half an update")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.killed_at = time.monotonic()
            raise

    async def stop_run(self, run_folder: Any) -> None:
        pass

    async def stop(self) -> None:
        pass


def withdraw(site: Any, run_id: RunId) -> None:
    """What ``wardround-site runs withdraw`` does, in a process of its own."""
    db, clock = open_site_db(site.folder / "site.db"), SystemClock()
    signer = seeded_signer(site.site_id)
    audit = AuditLog(signer, clock, f"site:{site.site_id}")
    withdraw_run(db, audit, signer=signer, run_id=run_id, local_user="jane", reason="consent", now=clock.now())
    db.close()


def let_expire(site: Any, run_id: RunId) -> None:
    db = open_site_db(site.folder / "site.db")

    def write(session: Session) -> None:
        session.get_one(RunLedgerRow, run_id).expires_at = "2026-01-02T03:04:05.000000Z"

    db.run_tx("expire", write)
    db.close()


def left_of(site: Any) -> list[Path]:
    """Keys of exchanges and updates in the clear: what could be gone on with."""
    return [path for folder in ("jobs", "journal") for path in (site.folder / folder).rglob("*") if path.is_file()]


def participations(site: Any) -> list[tuple[object, object]]:
    db = open_site_db(site.folder / "site.db")
    events = [json.loads(row.body) for row in db.run_read("read", read_log).rows]
    db.close()
    return [(e["facts"]["state"], e["facts"]["reason"]) for e in events if e["kind"] == "participation.state"]


@pytest.mark.parametrize(
    ("end", "reason"), [(withdraw, "run-withdrawn"), (let_expire, "approval-expired")], ids=["withdrawn", "expired"]
)
async def test_word_taken_back_in_training_kills_the_trainer_at_once(
    federation_of: FederationOf, end: Callable[[Any, RunId], None], reason: str
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    alpha.runner = trainer = SlowTrainer()
    ended_at = 0.0

    def is_over() -> bool:
        nonlocal ended_at
        if trainer.n_started == 1 and not ended_at:
            end(alpha, coordinator.round.run_id)
            ended_at = time.monotonic()
        # The end is recorded, and then what it had of an update goes.
        is_gone = not list((alpha.folder / "jobs").rglob("payload.safetensors"))
        return ("declined", reason) in participations(alpha) and is_gone

    await federation.run(is_over)
    assert trainer.killed_at is not None
    assert trainer.killed_at - ended_at < AT_ONCE_S
    # The round that is assigned again is declined before it trains.
    await federation.run(lambda: len(coordinator.declined) > 1)
    assert set(coordinator.declined) == {("alpha", DeclineKind.REFUSED, reason)}
    assert trainer.n_started == 1


@pytest.mark.parametrize(
    ("held_back", "last_said"),
    [
        (asked.RelayKeys, Step.ADVERTISE),
        (asked.RelayShares, Step.SHARE),
        (asked.RelaySurvivors, Step.MASK),
        (asked.RelayConfirmations, Step.CONFIRM),
    ],
)
async def test_withdrawal_in_an_exchange_leaves_no_half_state(
    federation_of: FederationOf, held_back: type[object], last_said: Step
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    coordinator.holds_back = held_back
    is_withdrawn = False

    def is_over() -> bool:
        nonlocal is_withdrawn
        if not is_withdrawn and len(coordinator.messages(last_said)) == 3:
            withdraw(alpha, coordinator.round.run_id)
            is_withdrawn = True
        return ("declined", "run-withdrawn") in participations(alpha) and left_of(alpha) == []

    # The coordinator asks for nothing more: the site leaves by itself.
    await federation.run(is_over)
    assert coordinator.declined == [("alpha", DeclineKind.REFUSED, "run-withdrawn")]
    assert "alpha" not in coordinator.messages(Step.REVEAL)
    # Started again over the same files, it still says no more than no.
    coordinator.holds_back = None
    await federation.run(lambda: len(coordinator.declined) > 1 or coordinator.results != {}, timeout_s=20)
    assert coordinator.results == {}
    assert "alpha" not in coordinator.messages(Step.REVEAL)
    assert participations(alpha).count(("declined", "run-withdrawn")) == 1


async def test_withdrawal_after_the_reveal_lets_the_result_settle(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    commit = coordinator.commit

    def commit_after_withdrawal() -> None:
        # All three revealed; the sum is made whatever alpha says now.
        if coordinator.round_index == 0:
            withdraw(alpha, coordinator.round.run_id)
        commit()

    coordinator.commit = commit_after_withdrawal
    await federation.run(lambda: bool(coordinator.declined))
    # The sum that it helped to unmask is verified and folded; then it takes part no more.
    assert "alpha" in coordinator.acknowledged[0]
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, "run-withdrawn")
    assert coordinator.round.round_index == 1


async def test_withdrawal_while_no_agent_runs_deletes_the_training_that_was_cut_short(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    alpha.runner = trainer = SlowTrainer()
    await federation.run(lambda: trainer.n_started == 1)
    # The agent is gone; its job folder is there for the next start. Only the steward's command runs now.
    assert list((alpha.folder / "jobs").rglob("payload.safetensors")) != []
    withdraw(alpha, coordinator.round.run_id)
    # The word to the coordinator goes before the end of the round is recorded.
    await federation.run(lambda: bool(coordinator.declined) and bool(participations(alpha)))
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, "run-withdrawn")
    assert list((alpha.folder / "jobs").rglob("payload.safetensors")) == []
    assert participations(alpha)[0] == ("declined", "run-withdrawn")
    assert trainer.n_started == 1
