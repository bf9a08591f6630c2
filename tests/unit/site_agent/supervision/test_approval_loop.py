"""When the coordinator is asked for runs, and which it has ended: what this site keeps of such a run goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.ids import RunId, Sha256Hex
from fl_protocol.spec.context import RoundContext
from site_agent.approvals.decisions import check_may_follow
from site_agent.approvals.errors import RunAlreadyDecidedError, RunDocumentInvalidError
from site_agent.approvals.run_records import RunInHand, find_run, list_runs, record_pending_run, standing_run_ids
from site_agent.approvals.statement import Decision
from site_agent.audit.store import AuditLog
from site_agent.db.models import ApprovalRow, AuditEventRow, RunLedgerRow
from site_agent.db.tx import SiteDb
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError, RoundRefusedError
from site_agent.link.client import RunDocuments, RunSummary
from site_agent.state.private_states import PrivateStates
from site_agent.supervision.approval_loop import ApprovalLoop
from site_agent.supervision.approved_runs import read_approved_run


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
    def __init__(self, runs: Sequence[RunInHand], *, state: str = "ACTIVE") -> None:
        self._runs = {run.run_id: run for run in runs}
        self.state = state
        self.n_shown = 0

    def _summary(self, run: RunInHand) -> RunSummary:
        return RunSummary(run_id=run.run_id, name=run.name, run_spec_sha256=run.run_spec_sha256, state=self.state)

    async def list_pending(self) -> tuple[RunSummary, ...]:
        return tuple(self._summary(run) for run in self._runs.values())

    async def get_run(self, run_id: RunId) -> RunDocuments:
        self.n_shown += 1
        if run_id not in self._runs:
            raise CoordinatorRefusedError("no such run", status="NOT_FOUND", refusal_code="not-found")
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


class Ending:
    """A site with one run in hand, and a coordinator that says how it is about it."""

    def __init__(self, site_db: SiteDb, audit_log: AuditLog, run: RunInHand, *, folder: Path, said: str) -> None:
        self.db, self.run = site_db, run
        self.client = OfferingClient([run], state=said)
        jobs = SimpleNamespace(private_states_dir=folder / "private", jobs_dir=folder / "jobs")
        seams = SimpleNamespace(client=self.client, db=site_db, audit=audit_log, clock=SystemClock(), jobs=jobs)
        self.loop = ApprovalLoop(seams, policies=None, identity=None, peers=dict)  # type: ignore[arg-type]
        self.private = PrivateStates(jobs.private_states_dir)
        of_round = RoundContext(run_id=run.run_id, round_index=0, round_attempt=0)
        self.private.offer(of_round, b"a control variate")
        self.private.decide(of_round, is_counted=True)

    async def look(self, *, times: int = 1) -> None:
        for _ in range(times):
            await self.loop._end_in_turn()

    @property
    def state(self) -> tuple[str, str | None]:
        (record,) = self.db.run_read("runs", list_runs)
        return record.state, record.reason

    @property
    def said_in_the_log(self) -> list[tuple[object, object]]:
        def read(session: Session) -> list[bytes]:
            return [bytes(body) for body in session.scalars(select(AuditEventRow.body).order_by(AuditEventRow.seq))]

        events = [event_from_bytes(body).event for body in self.db.run_read("events", read)]
        return [
            (event.facts["state"], event.facts.get("reason")) for event in events if event.kind.value == "run.state"
        ]


EndingOf = Callable[..., Ending]


@pytest.fixture
def ending_of(site_db: SiteDb, audit_log: AuditLog, run_in_hand: RunInHand, tmp_path: Path) -> EndingOf:
    def make(said: str, *, held_as: str) -> Ending:
        see_run(site_db, audit_log, run_in_hand, state=held_as)
        return Ending(site_db, audit_log, run_in_hand, folder=tmp_path, said=said)

    return make


@pytest.mark.parametrize("held_as", ["pending", "approved", "active", "paused"])
@pytest.mark.parametrize(("said", "reason"), [("CANCELLED", "cancelled"), ("FAILED", "failed")])
async def test_run_that_the_coordinator_ended_is_over_here_too(
    ending_of: EndingOf, held_as: str, said: str, reason: str
) -> None:
    ending = ending_of(said, held_as=held_as)
    await ending.look()
    assert ending.state == ("ended", reason)
    assert ending.said_in_the_log == [("pending", None), ("ended", reason)]
    # SCAFFOLD's control variate tells of the records, and is of no more use.
    assert ending.private.current(ending.run.run_id) is None
    with pytest.raises(RoundRefusedError) as refused:
        ending.db.run_read("approved", lambda session: read_approved_run(session, ending.run.run_id))
    assert refused.value.reason == "run-ended"


async def test_run_that_was_completed_without_this_site_waits_for_its_word_no_longer(ending_of: EndingOf) -> None:
    ending = ending_of("COMPLETED", held_as="pending")
    await ending.look()
    assert ending.state == ("ended", "completed-without-this-site")


@pytest.mark.parametrize("said", ["AWAITING_SITES", "ACTIVE", "PAUSED", "COMPLETED", "DRAFT", "a newer state", ""])
async def test_run_that_goes_on_or_ends_with_its_last_round_stays(ending_of: EndingOf, said: str) -> None:
    ending = ending_of(said, held_as="approved")
    await ending.look()
    assert ending.state == ("approved", None)
    assert ending.private.current(ending.run.run_id) == b"a control variate"


@pytest.mark.parametrize("held_as", ["withdrawn", "refused", "completed", "ended"])
async def test_run_that_is_not_in_hand_is_not_asked_for(ending_of: EndingOf, held_as: str) -> None:
    ending = ending_of("CANCELLED", held_as=held_as)
    await ending.look()
    assert ending.client.n_shown == 0
    assert ending.state == (held_as, None)


async def test_run_that_the_coordinator_does_not_know_stays(ending_of: EndingOf) -> None:
    ending = ending_of("CANCELLED", held_as="approved")
    ending.client._runs.clear()
    await ending.look()
    assert ending.state == ("approved", None)


async def test_what_a_round_leaves_while_it_is_being_stopped_goes_with_the_next_look(ending_of: EndingOf) -> None:
    ending = ending_of("CANCELLED", held_as="approved")
    await ending.look()
    of_round = RoundContext(run_id=ending.run.run_id, round_index=1, round_attempt=0)
    ending.private.offer(of_round, b"of a trainer that was not dead yet")
    ending.private.decide(of_round, is_counted=True)
    await ending.look(times=30)
    assert ending.private.current(ending.run.run_id) is None


@pytest.mark.parametrize("has_committed", [False, True])
async def test_agent_that_dies_while_it_ends_a_run_is_found_by_its_next_start(
    ending_of: EndingOf, monkeypatch: pytest.MonkeyPatch, has_committed: bool
) -> None:
    class DiedError(Exception):
        """Nothing of it goes on."""

    ending = ending_of("CANCELLED", held_as="approved")

    def die(*_: object, **__: object) -> None:
        raise DiedError

    where = (PrivateStates, "forget") if has_committed else (ending.db, "run_tx")
    with monkeypatch.context() as dying:
        dying.setattr(*where, die)
        with pytest.raises(DiedError):
            await ending.look()
    # The next start keeps private states of standing runs only (``restoring``); what still stands is asked for again.
    standing = ending.db.run_read("standing", standing_run_ids)
    assert standing == (frozenset() if has_committed else {ending.run.run_id})
    ending.private.forget_all_but(standing)
    again = ApprovalLoop(ending.loop._seams, policies=None, identity=None, peers=dict)  # type: ignore[arg-type]
    await again._end_in_turn()
    assert ending.state == ("ended", "cancelled")
    assert ending.private.current(ending.run.run_id) is None
    assert ending.said_in_the_log == [("pending", None), ("ended", "cancelled")]


async def test_coordinator_is_asked_for_ends_at_every_thirtieth_look(ending_of: EndingOf) -> None:
    ending = ending_of("ACTIVE", held_as="approved")
    await ending.look(times=61)
    assert ending.client.n_shown == 3


async def test_steward_can_say_nothing_more_of_a_run_that_was_ended(ending_of: EndingOf) -> None:
    ending = ending_of("CANCELLED", held_as="approved")
    await ending.look()
    record = ending.db.run_read("run", lambda session: find_run(session, ending.run.run_id))
    for decision in Decision:
        with pytest.raises(RunAlreadyDecidedError, match="the run is over"):
            check_may_follow(record, decision)
