"""An approval that has ended is none, one that is taken back ends the site's part in the round, at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
import rfc8785
from coordinator_engine_lab import RUN_ID, EngineLab
from sqlalchemy import select

from coordinator.db.models import Approval, AuditRow
from coordinator.services.approve_run import approve_run, statement_from_bytes, withdraw_approval
from coordinator.services.list_runs_for_site import get_roster, list_pending_runs
from coordinator.services.refusals import StatementInvalidError
from coordinator.services.resources import Resources
from coordinator.services.site_instructions import OpenExchange, RelaySurvivors, TrainRound
from fl_protocol.audit.events import event_from_bytes
from fl_protocol.ids import SiteId
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer

MakeLab = Callable[..., EngineLab]
A, B, C, D = (SiteId(f"{letter}-site") for letter in "abcd")
FOUR = (A, B, C, D)
DAY = timedelta(days=1)


def resources_of(lab: EngineLab) -> Resources:
    return cast("Resources", SimpleNamespace(db=lab.db, now=lab.clock.now, wake_driver=lambda: None))


def instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def document(lab: EngineLab, decision: str = "approved", *, expires_at: str | None = None) -> dict[str, object]:
    pins = {str(site): str(pin) for site, pin in lab.spec.cohort.pins.items()}
    roster = json.dumps(pins, sort_keys=True, separators=(",", ":")).encode()
    return {
        "run_id": RUN_ID,
        "run_spec_sha256": lab.spec.digest(),
        "cohort_sha256": hashlib.sha256(roster).hexdigest(),
        "decision": decision,
        "dataset": "medical-qa",
        "purpose": "research" if decision == "approved" else None,
        "local_user": "jane",
        "at": instant(lab.clock.at),
        "expires_at": expires_at,
    }


def signed(site: SiteId, said: dict[str, object]) -> SignedBody:
    return sign_body(seeded_signer(site), "WR/sig/approval", rfc8785.dumps(said))  # type: ignore[arg-type]


def approve(lab: EngineLab, site: SiteId, *, until: datetime) -> None:
    lab.clock.advance(1)
    statement = signed(site, document(lab, expires_at=instant(until)))
    approve_run(resources_of(lab), site_id=site, run_id=RUN_ID, statement=statement)


def withdraw(lab: EngineLab, site: SiteId) -> None:
    lab.clock.advance(1)
    statement = signed(site, document(lab, "withdrawn"))
    withdraw_approval(resources_of(lab), site_id=site, run_id=RUN_ID, statement=statement)


def audited(lab: EngineLab, kind: str) -> list[dict[str, object]]:
    bodies = lab.db.read("audit", lambda session: list(session.scalars(select(AuditRow.body).order_by(AuditRow.seq))))
    events = [event_from_bytes(body).event for body in bodies]
    return [dict(event.facts) for event in events if event.kind.value == kind]


# The statement


def test_statement_of_a_site_of_0_1_holds_without_an_end(make_lab: MakeLab) -> None:
    lab = make_lab()
    said = document(lab)
    for key in ("cohort_sha256", "expires_at"):
        del said[key]
    lab.clock.advance(1)
    approve_run(resources_of(lab), site_id=A, run_id=RUN_ID, statement=signed(A, {**said, "at": instant(lab.clock.at)}))
    row = lab.db.read("row", lambda session: session.get_one(Approval, (RUN_ID, A)))
    assert (row.decision, row.expires_at) == ("approved", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": None},
        {"expires_at": "2020-01-01T00:00:00.000000Z"},
        {"expires_at": "tomorrow"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": 7},
        {"cohort_sha256": None},
        {"cohort_sha256": "missing"},
        {"decision": "withdrawn"},
        {"surplus": "x"},
    ],
)
def test_statement_whose_end_or_cohort_is_none_is_refused(make_lab: MakeLab, changes: dict[str, object]) -> None:
    lab = make_lab()
    said = {**document(lab, expires_at="2099-01-01T00:00:00.000000Z"), **changes}
    if said["cohort_sha256"] == "missing":
        del said["cohort_sha256"]
    with pytest.raises(StatementInvalidError):
        statement_from_bytes(rfc8785.dumps(said))  # type: ignore[arg-type]


def test_statement_about_another_cohort_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.clock.advance(1)
    said = {**document(lab, expires_at=instant(lab.clock.at + DAY)), "cohort_sha256": "ab" * 32}
    with pytest.raises(StatementInvalidError, match="another cohort"):
        approve_run(resources_of(lab), site_id=A, run_id=RUN_ID, statement=signed(A, said))


# Expiry


async def test_site_whose_approval_ended_is_not_in_the_next_round_and_is_again_once_it_approves(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(*FOUR, rounds=2)
    approve(lab, A, until=lab.clock.at + timedelta(minutes=4))
    await lab.settle_until(OpenExchange)
    assert lab.invited(0) == FOUR
    # It ends while the round is under way: the site itself decides about that one.
    lab.clock.advance(240)
    await lab.settle_until(TrainRound)
    assert lab.invited(1) == (B, C, D)
    roster = {member.site_id: member.is_approved for member in get_roster(resources_of(lab), site_id=B, run_id=RUN_ID)}
    assert roster == {A: False, B: True, C: True, D: True}
    assert [run.run_id for run in list_pending_runs(resources_of(lab), site_id=A)] == [RUN_ID]
    approve(lab, A, until=lab.clock.at + 30 * DAY)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert lab.invited(2) == FOUR


async def test_run_that_lacks_an_approval_which_ended_waits_and_says_whose(make_lab: MakeLab) -> None:
    lab = make_lab(rounds=2)
    approve(lab, B, until=lab.clock.at + timedelta(minutes=4))
    await lab.settle_until(OpenExchange)
    lab.clock.advance(240)
    await lab.settle()
    assert (lab.run().state, lab.invited(1)) == ("ACTIVE", ())
    assert "b-site (approved, and its approval has ended" in lab.says()
    assert "a-site" not in lab.says()


async def test_approval_that_ended_before_the_run_began_is_waited_for(make_lab: MakeLab) -> None:
    lab = make_lab()
    approve(lab, C, until=lab.clock.at + timedelta(minutes=10))
    lab.clock.advance(600)
    await lab.settle()
    assert lab.run().state == "AWAITING_SITES"
    assert "has 2: c-site (approved, and its approval has ended" in lab.says()


async def test_approval_counts_as_ended_a_little_before_it_ends(make_lab: MakeLab) -> None:
    """The site's clock decides, and it may be two minutes ahead of this one."""
    lab = make_lab(*FOUR)
    until = lab.clock.at + timedelta(hours=1)
    approve(lab, A, until=until)
    lab.clock.at = until - timedelta(minutes=2)
    await lab.settle_until(TrainRound)
    assert lab.invited(0) == (B, C, D)


# Withdrawal


async def test_site_that_withdraws_in_training_is_out_of_the_round_at_once_and_of_all_that_follow(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(*FOUR, rounds=2)
    await lab.settle_until(TrainRound)
    withdraw(lab, A)
    row = lab.participation(A)
    assert (row.state, row.reason) == ("DECLINED", "run-withdrawn")
    assert audited(lab, "run.withdrawn")[0]["site_id"] == A
    left = [facts for facts in audited(lab, "participation.state") if facts["site_id"] == A]
    assert [(facts["state"], facts["reason"]) for facts in left] == [("DECLINED", "run-withdrawn")]
    lab.sites[A].is_lost = True
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert lab.invited(1) == lab.invited(2) == (B, C, D)
    counted = {name for name in FOUR if lab.participation(name).state == "COUNTED"}
    assert counted == {B, C, D}


async def test_site_that_withdraws_after_it_was_named_a_survivor_is_in_that_sum_and_in_no_other(
    make_lab: MakeLab,
) -> None:
    """Its masked vector is in the sum before it leaves; what it holds back are its shares, and three others suffice."""
    lab = make_lab(*FOUR, rounds=2)
    await lab.settle_until(RelaySurvivors)
    withdraw(lab, A)
    lab.sites[A].is_lost = True
    await lab.live(3600, until=lambda: lab.run().state == "COMPLETED")
    assert lab.run().state == "COMPLETED"
    assert lab.participation(A).state == "COUNTED"
    assert lab.invited(1) == lab.invited(2) == (B, C, D)


async def test_word_that_is_taken_back_twice_is_taken_back_once(make_lab: MakeLab) -> None:
    lab = make_lab(*FOUR)
    await lab.settle_until(TrainRound)
    lab.clock.advance(1)
    statement = signed(A, document(lab, "withdrawn"))
    for _ in range(2):
        withdraw_approval(resources_of(lab), site_id=A, run_id=RUN_ID, statement=statement)
    assert len(audited(lab, "run.withdrawn")) == 1
