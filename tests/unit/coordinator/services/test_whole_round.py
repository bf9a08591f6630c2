"""A whole round through the services: real database, blobs and roles, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import coordinator_engine_lab
import numpy as np
import pytest
from coordinator_engine_lab import ADAPTER, COORDINATOR, RUN_ID, EngineLab, initial_state
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, AuditCheckpoint, AuditRow, Exchange, Run, Site
from coordinator.services.describe_run import waiting_for
from coordinator.services.get_result import get_result
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.site_instructions import AbandonRound, Idle, RelayShares, TrainRound
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.codec.fixed_point import quantisation_step
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.secagg.messages import ExchangeResult
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind

MakeLab = Callable[..., EngineLab]


def plaintext_mean(lab: EngineLab, names: list[str]) -> np.ndarray:
    """The weighted mean of the updates, in float64, from what the sites hold: FedAvg's equation."""
    total, weight = np.zeros(ADAPTER.n_parameters), 0
    for name in names:
        site = lab.sites[SiteId(name)]
        ref = min(site.manifests)
        update = site.raw(ref, RoundKind.TRAIN)["adapter_update"].astype(np.float64)
        assert np.linalg.norm(update) < lab.spec.privacy.clip_norm
        total += site.n_records * update
        weight += site.n_records
    return total / weight


def coordinator_update(lab: EngineLab) -> np.ndarray:
    state = PublicState.from_bytes(lab.ctx.blobs.read(lab.round().state_blob_sha256_after or ""))
    after = ADAPTER.flatten(dict(state.adapter)).astype(np.float64)
    return after - ADAPTER.flatten(dict(initial_state().adapter)).astype(np.float64)


def assert_is_mean_of(lab: EngineLab, names: list[str]) -> None:
    layout = ALGORITHMS["fedavg-lora"].segments(lab.spec, ADAPTER, RoundKind.TRAIN)
    weights = sum(lab.sites[SiteId(name)].n_records for name in names)
    # n sites at half a step each, in units of w / W; then float32 rounding of the adapter itself.
    bound = len(names) * quantisation_step(layout, "adapter_update") * lab.spec.privacy.weight_cap / weights + 1e-6
    assert np.abs(coordinator_update(lab) - plaintext_mean(lab, names)).max() <= bound


def make_payload_implausible(lab: EngineLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one site claim a weight that no site may have."""
    encode_payload = coordinator_engine_lab.encode_payload

    def encode(values: dict[str, np.ndarray], layout: PayloadLayout) -> RingVector:
        vector = encode_payload(values, layout)
        if values["weight"][0] == lab.sites[SiteId("b-site")].n_records:
            vector.ring64[layout.slice_of("weight")] += np.uint64(10**9)
        return vector

    monkeypatch.setattr(coordinator_engine_lab, "encode_payload", encode)


async def test_run_of_three_sites_reaches_completed_with_the_mean_of_their_updates(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    assert (lab.run().state, lab.run().reason) == ("COMPLETED", None)
    assert lab.released == [RUN_ID]
    assert set(lab.states(0).values()) == set(lab.states(1).values()) == {"COUNTED"}
    assert_is_mean_of(lab, list(lab.names))
    report = lab.round().report
    assert report is not None
    assert report["n_records"] == sum(site.n_records for site in lab.sites.values())
    assert report["n_eval_records"] == 9
    assert lab.round(1).kind == "evaluate"
    digests = {site.state.digest() for site in lab.sites.values()}
    assert digests == {lab.run().public_state_sha256}
    assert all(
        lab.participation(name).acknowledged_state_sha256 == lab.round().state_sha256_after for name in lab.names
    )


async def test_audit_log_after_a_run_verifies_and_tells_its_milestones(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()

    def read(session: Session) -> tuple[list[Leaf], list[str], list[SignedBody]]:
        rows = [Leaf(seq=r.seq, body=r.body, leaf_sha256=r.leaf_sha256) for r in session.scalars(select(AuditRow))]
        kinds = list(session.scalars(select(AuditRow.kind).order_by(AuditRow.seq)))
        checkpoints = session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size))
        return rows, kinds, [SignedBody(body=c.body, signature=c.signature) for c in checkpoints]

    rows, kinds, checkpoints = lab.db.read("audit", read)
    verified = verify_log(rows, checkpoints, COORDINATOR.spki_der)
    assert isinstance(verified, AuditVerified)
    assert kinds.count("round.opened") == kinds.count("round.committed") == 2
    assert kinds.count("upload.accepted") == kinds.count("shares.revealed") == 6
    assert kinds.count("result.verified") == 6


async def test_driver_killed_between_any_two_steps_is_continued_by_another(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle(restart_each_step=True)
    assert lab.run().state == "COMPLETED"
    assert_is_mean_of(lab, list(lab.names))
    assert lab.round().round_attempt == 0


async def test_site_that_drops_after_its_shares_is_left_out_and_the_others_are_summed(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site", "e-site")
    lab.sites[SiteId("d-site")].silent.add(RelayShares)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "EXCHANGING"
    lab.clock.advance(601)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    row = lab.participation("d-site")
    assert (row.state, row.reason) == ("DROPPED", "silent-in-collecting")
    assert {name for name, state in lab.states().items() if state == "COUNTED"} == set(lab.names) - {"d-site"}
    assert_is_mean_of(lab, ["a-site", "b-site", "c-site", "e-site"])


async def test_absent_site_fetches_the_result_of_the_round_it_missed(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    lab.sites[SiteId("d-site")].silent.add(TrainRound)
    lab.sites[SiteId("d-site")].silent.add(AbandonRound)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    lab.clock.advance(3601)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    found = await get_result(lab.ctx, site_id=SiteId("d-site"), run_id=RUN_ID, round_index=0)
    said = ExchangeResult.decode(SignedBody.decode(found.result.m10).body)
    assert said.result_sha256.hex() == found.result.sum_blob_sha256
    assert lab.ctx.blobs.size(found.result.sum_blob_sha256) == found.result.sum_bytes


async def test_sum_that_no_honest_cohort_can_have_three_times_fails_the_run(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    make_payload_implausible(lab, monkeypatch)
    await lab.live(300)
    assert (lab.run().state, lab.run().reason) == ("FAILED", "attempts-exhausted: implausible-sum")
    assert [lab.round(0, attempt).state for attempt in range(3)] == ["ABORTED"] * 3
    assert lab.says() == "Failed: attempts-exhausted: implausible-sum."


async def test_sum_that_no_honest_cohort_can_have_aborts_the_round(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    make_payload_implausible(lab, monkeypatch)
    await lab.live(60, until=lambda: lab.run().next_round_attempt == 2)
    assert lab.round().reason == "implausible-sum"
    assert lab.run().public_state_version == 0
    exchange = lab.db.read("exchange", lambda session: session.scalars(select(Exchange)).first())
    assert exchange is not None
    assert exchange.sum_blob_sha256 is None


async def test_cancelled_run_aborts_its_round_and_sites_are_told_to_abandon_it(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)

    def cancel(session: Session) -> None:
        session.get(Run, RUN_ID).state = "CANCELLED"

    lab.db.run_tx("cancel", cancel)
    while await lab.driver.step(RUN_ID):
        pass
    assert (lab.round().state, lab.round().reason) == ("ABORTED", "run-cancelled")
    for site in lab.sites.values():
        found = await poll_instruction(lab.ctx, site_id=site.site_id, holding=sorted(site.holding), wait_s=0)
        assert isinstance(found, AbandonRound)
        assert found.reason == "run-cancelled"
    await lab.settle()
    assert all(not site.holding for site in lab.sites.values())


async def test_paused_run_finishes_its_round_and_opens_no_other(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)

    def pause(session: Session) -> None:
        session.get(Run, RUN_ID).state = "PAUSED"

    lab.db.run_tx("pause", pause)
    await lab.settle()
    assert lab.round().state == "COMMITTED"
    assert lab.db.read("none", lambda session: session.get(type(lab.round()), (RUN_ID, 1, 0))) is None
    assert "paused" in lab.db.read("say", lambda session: waiting_for(session, lab.run(), lab.clock.at))


async def test_run_with_too_few_approvals_waits_and_says_for_whom(make_lab: MakeLab) -> None:
    lab = make_lab()

    def withdraw(session: Session) -> None:
        session.get(Approval, (RUN_ID, "b-site")).decision = "withdrawn"

    lab.db.run_tx("withdraw", withdraw)
    await lab.settle()
    assert lab.run().state == "AWAITING_SITES"
    said = lab.db.read("say", lambda session: waiting_for(session, lab.run(), lab.clock.at))
    assert "3 approvals" in said
    assert "b-site (withdrew its approval" in said


async def test_suspended_site_is_dropped_and_takes_no_further_part(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    await lab.settle_until(RelayShares)

    def suspend(session: Session) -> None:
        session.get(Site, "b-site").state = "SUSPENDED"

    lab.db.run_tx("suspend", suspend)
    del lab.sites[SiteId("b-site")]
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    row = lab.participation("b-site")
    assert (row.state, row.reason) == ("DROPPED", "site-not-active")
    assert lab.round().state == "COMMITTED"
    assert lab.participation("a-site").state == "COUNTED"


async def test_driver_loop_runs_a_whole_run_by_wakeups(make_lab: MakeLab) -> None:
    lab = make_lab()
    task = asyncio.create_task(lab.driver.run())
    try:
        async with asyncio.timeout(60):
            while not lab.released:
                seen = lab.ctx.wakeups.sites.count
                if not any([await site.turn() for site in lab.sites.values()]):
                    await lab.ctx.wakeups.sites.wait(seen, timeout_s=0.2)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert lab.run().state == "COMPLETED"
    assert lab.driver.last_turn_at is not None


async def test_poll_with_nothing_due_returns_idle_and_with_an_unknown_round_abandons_it(make_lab: MakeLab) -> None:
    lab = make_lab()
    site = SiteId("a-site")
    assert isinstance(await poll_instruction(lab.ctx, site_id=site, holding=[], wait_s=0), Idle)
    await lab.settle(until=lambda: bool(lab.sites[site].holding))
    (held,) = lab.sites[site].holding
    foreign = type(held)(run_id=RUN_ID, round_index=9, round_attempt=0)
    found = await poll_instruction(lab.ctx, site_id=site, holding=[foreign], wait_s=0)
    assert found == AbandonRound(round=foreign, reason="round-unknown")


async def test_bell_of_the_sites_rings_by_phases_and_not_by_messages(make_lab: MakeLab) -> None:
    """Each ring lets every site look: were it by messages, a round would cost the square of its sites."""
    rings = []
    for names in (("a-site", "b-site", "c-site"), tuple(f"{letter}-site" for letter in "abcdef")):
        lab = make_lab(*names)
        await lab.settle(until=lambda lab=lab: lab.run().next_round_index == 1)
        rings.append(lab.ctx.wakeups.sites.count)
    assert rings[0] == rings[1]
    # Opened, exchanging, five phases, summed, committed; and what the run itself went through.
    assert 9 <= rings[0] <= 12
