"""Sites that are lost, late, suspended or paused, in every phase: it costs time, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from coordinator_engine_lab import EXCHANGE_PHASES, RUN_ID, START, EngineLab, parts_of
from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from coordinator.db.models import Round, Site
from coordinator.errors import BlobStoreFullError
from coordinator.rounds.instructions import RoundRef
from coordinator.services import get_result as get_result_module
from coordinator.services.accept_round import DeclineKind, accept_round, decline_round
from coordinator.services.accept_upload import UploadTruncatedError, accept_upload
from coordinator.services.get_result import download_blob
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.receive_upload import BlobPart
from coordinator.services.report_progress import SiteActivity, report_progress, report_ready
from coordinator.services.site_instructions import (
    Idle,
    Instruction,
    PublishedResult,
    RelayConfirmations,
    RelayKeys,
    RelayShares,
    RelaySurvivors,
    TrainRound,
)
from fl_protocol.ids import SiteId

MakeLab = Callable[..., EngineLab]
A, B, C, D, E = (SiteId(f"{letter}-site") for letter in "abcde")
FIVE = ("a-site", "b-site", "c-site", "d-site", "e-site")
FOUR = FIVE[:4]
PHASES = (TrainRound, *EXCHANGE_PHASES)
BEFORE_SHARES = EXCHANGE_PHASES[:3]


def attempts(lab: EngineLab) -> list[tuple[int, int, str, str | None]]:
    """Every attempt at every round: index, attempt, state, reason."""

    def read(session: Session) -> list[tuple[int, int, str, str | None]]:
        rows = session.scalars(select(Round).order_by(Round.round_index, Round.round_attempt))
        return [(row.round_index, row.round_attempt, row.state, row.reason) for row in rows]

    return lab.db.read("attempts", read)


def counted(lab: EngineLab, index: int = 0, attempt: int = 0) -> set[str]:
    return {name for name in lab.invited(index, attempt) if lab.participation(name, index, attempt).state == "COUNTED"}


# A site is lost for six minutes


@pytest.mark.parametrize("phase", PHASES)
async def test_six_minutes_without_one_of_three_sites_cost_nothing_but_time(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab()
    await lab.settle_until(phase)
    lab.sites[C].is_lost = True
    await lab.live(360)
    assert "c-site (last heard of at 12:" in lab.says() or phase is TrainRound
    assert "c-site" in lab.says()
    lab.sites[C].is_lost = False
    await lab.live(60)
    assert lab.run().state == "COMPLETED"
    assert attempts(lab) == [(0, 0, "COMMITTED", None), (1, 0, "COMMITTED", None)]
    assert lab.exchange(exchange_attempt=1) is None
    assert counted(lab) == {"a-site", "b-site", "c-site"}


@pytest.mark.parametrize("phase", PHASES)
async def test_loss_that_outlasts_the_deadline_costs_time_and_the_run_completes(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab(phase_deadline_s=60)
    await lab.settle_until(phase)
    lab.sites[C].is_lost = True
    # Longer than training is given, so that a round that has not begun its exchange ends.
    await lab.live(3700 if phase is TrainRound else 600, step_s=60)
    assert lab.run().state == "ACTIVE"
    assert "c-site" in lab.says()
    lab.sites[C].is_lost = False
    await lab.live(120)
    assert lab.run().state == "COMPLETED"
    assert counted(lab, 0, 1 if phase is TrainRound else 0) == {"a-site", "b-site", "c-site"}
    # From the exchange on not even the training is lost: the exchange is begun afresh, or waits.
    assert (lab.exchange(exchange_attempt=1) is not None) == (phase in BEFORE_SHARES)
    n_aborted = sum(state == "ABORTED" for _, _, state, _ in attempts(lab))
    assert n_aborted == (1 if phase is TrainRound else 0)


async def test_run_waits_for_quorum_for_days_and_opens_no_round_meanwhile(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.sites[B].is_lost = True
    await lab.live(3 * 86_400, step_s=7200)
    assert lab.run().state == "ACTIVE"
    assert attempts(lab) == []
    assert lab.says() == "Round 0 waits for 1 more of 3 sites: b-site (never heard of)."
    lab.sites[B].is_lost = False
    await lab.live(40)
    assert lab.run().state == "COMPLETED"


async def test_run_says_when_the_missing_site_was_last_heard_of(make_lab: MakeLab) -> None:
    lab = make_lab(rounds=2)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    lab.set_run("PAUSED")
    lab.sites[B].is_lost = True
    lab.clock.advance(360)
    await lab.settle()
    lab.set_run("ACTIVE")
    await lab.settle()
    assert lab.says() == "Round 1 waits for 1 more of 3 sites: b-site (last heard of at 12:00 UTC, 6 min ago)."


async def test_environmental_aborts_use_up_no_attempts_and_pause_longer_each_time(make_lab: MakeLab) -> None:
    lab = make_lab()
    said = {"n": 0}

    async def decline() -> None:
        found = await poll_instruction(lab.ctx, site_id=C, holding=[], wait_s=0)
        if isinstance(found, TrainRound):
            said["n"] += 1
            await decline_round(lab.ctx, site_id=C, round=found.round, kind=DeclineKind.REFUSED, reason="site-paused")

    lab.sites[C].is_lost = True
    for _ in range(360):
        await decline()
        await lab.settle()
        lab.clock.advance(10)
    ended = [row for row in attempts(lab) if row[2] == "ABORTED"]
    assert {row[3] for row in ended} == {"quorum-not-reached"}
    # An hour of pauses of 10, 20, 40 ... 600 s: after 10 x (2^6 - 1) = 630 s come five more of 600 s.
    assert said["n"] == len(ended)
    assert 10 <= len(ended) <= 12
    assert lab.run().state == "ACTIVE"
    assert "for its attempt" in lab.says()
    assert "c-site said site-paused" in lab.says()
    lab.sites[C].is_lost = False
    await lab.live(700)
    assert lab.run().state == "COMPLETED"


# Effects


async def test_full_disk_is_waited_out_and_the_run_says_so(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab()
    await lab.settle_until(RelayConfirmations)
    put = lab.ctx.blobs.put

    def refuse(*_: object, **__: object) -> object:
        raise BlobStoreFullError("no room is left")

    monkeypatch.setattr(type(lab.ctx.blobs), "put", refuse)
    with capture_logs() as logs:
        await lab.live(3600, step_s=30)
    assert len([entry for entry in logs if entry["event"] == "effect_failed"]) > 6
    assert lab.round().state == "EXCHANGING"
    assert "which failed" in lab.says()
    assert "with blob-store-full and is tried again at 13:0" in lab.says()
    monkeypatch.setattr(type(lab.ctx.blobs), "put", lambda _, *args, **more: put(*args, **more))
    await lab.live(120)
    assert lab.run().state == "COMPLETED"
    assert attempts(lab)[0] == (0, 0, "COMMITTED", None)


# Slow is late, not dead


async def test_slow_site_that_still_steps_is_waited_for_past_the_deadline(make_lab: MakeLab) -> None:
    lab = make_lab(*FOUR)
    slow = lab.sites[D]
    slow.silent.add(TrainRound)
    await lab.settle()
    assert isinstance(slow.last, TrainRound)
    ref = slow.last.round
    slow.manifests[ref] = slow.last.manifest
    slow.holding.add(ref)
    slow.silent.clear()
    await accept_round(lab.ctx, site_id=D, round=ref)
    for step in range(1, 11):
        await report_progress(lab.ctx, site_id=D, round=ref, activity=SiteActivity.TRAINING, step=step, steps=20)
        await lab.live(500, step_s=100)
    assert lab.round().state == "TRAINING"
    said = "Round 0 waits for training at d-site (training, step 10 of 20), while they make progress at least every"
    assert lab.says() == f"{said} 10 min."
    await report_ready(lab.ctx, site_id=D, round=ref)
    await lab.live(40)
    assert counted(lab) == set(FOUR)


async def test_site_that_says_the_same_step_again_and_again_makes_no_progress(make_lab: MakeLab) -> None:
    lab = make_lab(*FOUR)
    lab.sites[D].silent.add(TrainRound)
    await lab.settle()
    ref = RoundRef(run_id=RUN_ID, round_index=0, round_attempt=0)
    await accept_round(lab.ctx, site_id=D, round=ref)
    for _ in range(40):
        if lab.round().state != "TRAINING":
            break
        await report_progress(lab.ctx, site_id=D, round=ref, activity=SiteActivity.TRAINING, step=3, steps=20)
        await accept_round(lab.ctx, site_id=D, round=ref)
        lab.clock.advance(100)
        await lab.settle(until=lambda: lab.run().next_round_index == 1)
    row = lab.participation("d-site")
    assert (row.state, row.reason) == ("DROPPED", "not-ready-in-time")
    assert (lab.clock.at - lab.round().opened_at).total_seconds() == 3600


# Over-selection


async def test_training_closes_with_enough_sites_and_the_rest_join_the_next_round(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE, enough=3, rounds=2)
    for name in (D, E):
        lab.sites[name].silent.add(TrainRound)
    await lab.settle()
    assert lab.round().state == "TRAINING"
    ref = RoundRef(run_id=RUN_ID, round_index=0, round_attempt=0)
    lab.sites[D].holding.add(ref)
    await accept_round(lab.ctx, site_id=D, round=ref)
    lab.clock.advance(5)
    while await lab.driver.step(RUN_ID):
        pass
    assert lab.round().state == "EXCHANGING"
    assert {(lab.participation(n).state, lab.participation(n).reason) for n in (D, E)} == {("DROPPED", "enough")}
    await lab.sites[D].turn()
    assert [(told.round, told.reason) for told in lab.sites[D].told] == [(ref, "enough")]
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert counted(lab) == {"a-site", "b-site", "c-site"}
    for site in lab.sites.values():
        site.silent.clear()
    await lab.live(20)
    assert lab.run().state == "COMPLETED"
    assert counted(lab, 1) == set(FIVE)


# Late sites


async def test_site_that_was_absent_in_one_round_folds_it_and_joins_the_next(make_lab: MakeLab) -> None:
    lab = make_lab(*FOUR, rounds=2)
    late = lab.sites[D]
    late.is_lost = True
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.invited() == ("a-site", "b-site", "c-site")
    # It came too late for the round that is open by now, and joins the one after it.
    late.is_lost = False
    await lab.live(40)
    assert lab.run().state == "COMPLETED"
    assert counted(lab, 2) == set(FOUR)
    assert late.state.digest() == lab.run().public_state_sha256


# Suspended


@pytest.mark.parametrize("phase", PHASES)
async def test_suspended_site_does_not_stop_a_round_that_has_enough_without_it(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab(*FIVE, rounds=2)
    await lab.settle_until(phase)
    lab.set_site("b-site", "SUSPENDED")
    lab.sites[B].is_lost = True
    await lab.live(40, until=lambda: lab.run().next_round_index == 1)
    assert lab.run().next_round_index == 1
    assert attempts(lab)[0] == (0, 0, "COMMITTED", None)
    is_in = phase in {RelaySurvivors, RelayConfirmations}
    assert counted(lab) == (set(FIVE) if is_in else set(FIVE) - {"b-site"})
    lab.set_site("b-site", "ENROLLED")
    lab.sites[B].is_lost = False
    await lab.live(60)
    assert lab.run().state == "COMPLETED"
    assert counted(lab, 2) == set(FIVE)
    assert lab.sites[B].state.digest() == lab.run().public_state_sha256


@pytest.mark.parametrize("phase", PHASES)
async def test_suspended_site_without_which_there_is_no_quorum_is_waited_for_until_resumed(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab()
    await lab.settle_until(phase)
    lab.set_site("b-site", "SUSPENDED")
    lab.sites[B].is_lost = True
    await lab.live(1200)
    assert lab.run().state == "ACTIVE"
    assert "b-site (is suspended" in lab.says()
    lab.set_site("b-site", "ENROLLED")
    lab.sites[B].is_lost = False
    await lab.live(60)
    assert lab.run().state == "COMPLETED"
    is_in = phase in {RelaySurvivors, RelayConfirmations}
    assert counted(lab, 0, 0 if is_in else 1) == {"a-site", "b-site", "c-site"}


async def test_site_suspended_after_its_upload_is_still_in_the_sum(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle_until(RelayShares)
    await lab.sites[B].turn()
    assert lab.participation("b-site").state == "UPLOADED"
    while await lab.driver.step(RUN_ID):
        pass
    lab.set_site("b-site", "SUSPENDED")
    lab.sites[B].is_lost = True
    await lab.live(40, until=lambda: lab.run().next_round_index == 1)
    assert counted(lab) == set(FIVE)


async def test_reveal_that_revoked_sites_can_no_longer_complete_ends_the_attempt(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle_until(RelayConfirmations)
    for name in (D, E):
        lab.sites[name].is_lost = True
        lab.set_site(name, "REVOKED")
    await lab.settle(until=lambda: lab.round().state == "ABORTED")
    assert (lab.round().state, lab.round().reason) == ("ABORTED", "too-few-revealed")
    assert lab.participation("d-site").reason == "site-revoked"


async def test_confirming_without_enough_voices_begins_afresh_among_those_who_are_there(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle_until(RelaySurvivors)
    for name in (D, E):
        lab.sites[name].is_lost = True
    await lab.live(900, until=lambda: lab.run().next_round_index == 1)
    first = lab.exchange()
    assert first is not None
    assert (first.state, first.reason) == ("FAILED", "too-few-confirmed")
    assert counted(lab) == {"a-site", "b-site", "c-site"}


async def test_exchange_that_failed_is_begun_afresh_with_who_came_back_meanwhile(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle_until(RelayKeys)
    for name in (C, D, E):
        lab.sites[name].is_lost = True
    await lab.settle()
    lab.clock.advance(601)
    for name in (A, B, C):
        lab.sites[name].is_lost = False
    # That a site asked is noted twice a minute at most.
    await lab.live(40, until=lambda: lab.exchange(exchange_attempt=1) is not None)
    again = lab.exchange(exchange_attempt=1)
    assert again is not None
    assert again.invited == ["a-site", "b-site", "c-site"]
    assert lab.exchange().reason == "too-few-shared"  # type: ignore[union-attr]
    await lab.live(20, until=lambda: lab.run().next_round_index == 1)
    assert counted(lab) == {"a-site", "b-site", "c-site"}
    assert lab.round().round_attempt == 0


# Pause, cancel, withdraw


async def test_pause_lets_the_open_round_finish_and_resume_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)
    lab.set_run("PAUSED")
    await lab.settle_until(RelaySurvivors)
    assert "waits for the word on who is in the sum of a-site, b-site, c-site" in lab.says()
    assert lab.says().endswith("; then the run is paused until a person resumes it.")
    await lab.live(3600, step_s=600)
    assert attempts(lab) == [(0, 0, "COMMITTED", None)]
    assert lab.says() == "Is paused, and waits for a person to resume it."
    lab.set_run("ACTIVE")
    await lab.live(20)
    assert lab.run().state == "COMPLETED"


@pytest.mark.parametrize("phase", PHASES)
async def test_cancel_ends_every_phase_at_once_and_the_sites_are_told(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab()
    await lab.settle_until(phase)
    is_held = phase is not TrainRound
    lab.set_run("CANCELLED")
    await lab.settle()
    assert attempts(lab) == [(0, 0, "ABORTED", "run-cancelled")]
    for site in lab.sites.values():
        assert [told.reason for told in site.told] == (["run-cancelled"] if is_held else [])
    assert lab.says() == "Was cancelled."
    assert not await lab.driver.step(RUN_ID)


async def test_cancel_ends_a_round_that_waits_for_its_sites_between_two_exchanges(make_lab: MakeLab) -> None:
    lab = make_lab(phase_deadline_s=60)
    await lab.settle_until(RelayKeys)
    lab.sites[C].is_lost = True
    await lab.live(300)
    assert "keeps what was trained and waits for 1 more of 3 sites" in lab.says()
    lab.set_run("CANCELLED")
    await lab.settle()
    assert attempts(lab) == [(0, 0, "ABORTED", "run-cancelled")]


async def test_site_that_withdraws_between_rounds_is_not_invited_any_more(make_lab: MakeLab) -> None:
    lab = make_lab(*FOUR, rounds=2)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    lab.set_approval("d-site", "withdrawn")
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert lab.invited(2) == ("a-site", "b-site", "c-site")


async def test_site_that_withdrew_once_it_was_in_the_sum_is_asked_to_take_no_result(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    site = lab.sites[SiteId("d-site")]
    site.silent.add(PublishedResult)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    (held,) = site.holding
    lab.set_approval("d-site", "withdrawn")
    # Whoever holds the round has revealed shares in it, and settles it.
    asked = await poll_instruction(lab.ctx, site_id=site.site_id, holding=[held], wait_s=0.0)
    assert isinstance(asked, PublishedResult)
    assert isinstance(await poll_instruction(lab.ctx, site_id=site.site_id, holding=[], wait_s=0.0), Idle)


async def test_withdrawal_that_breaks_the_quorum_is_waited_for_by_name(make_lab: MakeLab) -> None:
    lab = make_lab(rounds=2)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    lab.set_approval("c-site", "withdrawn")
    await lab.settle()
    assert lab.says() == "Round 1 waits for 1 more of 3 sites: c-site (withdrew its approval)."
    lab.set_approval("c-site", "approved")
    await lab.live(20)
    assert lab.run().state == "COMPLETED"


# Presence


async def test_upload_that_is_on_its_way_is_word_of_its_site(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayShares)
    lab.clock.advance(500)
    site, context = lab.sites[A], asked[A].exchange
    site.mask(context, asked[A].m4)
    m5 = site.role(context).last_message
    with pytest.raises(UploadTruncatedError):
        await accept_upload(
            lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(site.uploads[context][:70])
        )
    assert lab.db.read("seen", lambda session: session.get(Site, "a-site").last_seen_at) == lab.clock.at
    assert lab.exchange().phase_deadline_at == lab.clock.at + timedelta(seconds=600)  # type: ignore[union-attr]


async def test_slow_upload_is_progress_also_where_the_idle_deadline_is_short(make_lab: MakeLab) -> None:
    lab = make_lab(phase_deadline_s=12)
    asked = await lab.settle_until(RelayShares)
    relay = asked[C]
    assert isinstance(relay, RelayShares)
    site = lab.sites[C]
    site.mask(relay.exchange, relay.m4)
    m5 = site.role(relay.exchange).last_message
    assert m5 is not None

    def is_put_off() -> bool:
        exchange = lab.exchange()
        return exchange is not None and exchange.phase_deadline_at == lab.clock.at + timedelta(seconds=12)

    async def slowly() -> AsyncIterator[BlobPart]:
        async for part in parts_of(site.uploads[relay.exchange], size=16):
            yield part
            async with asyncio.timeout(20):
                while not is_put_off():  # noqa: ASYNC110 # it is noted beside the stream, which hears nothing of it
                    await asyncio.sleep(0)
            lab.clock.advance(4)
            await lab.driver.step(RUN_ID)

    await accept_upload(lab.ctx, site_id=C, exchange=relay.exchange, m5=m5, offset=0, parts=slowly())
    # Three idle deadlines long.
    assert (lab.clock.at - START).total_seconds() >= 36
    await lab.settle()
    assert counted(lab) == {"a-site", "b-site", "c-site"}


async def test_site_that_downloads_for_long_is_invited_to_the_next_round(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_result_module, "CHUNK_BYTES", 16)
    monkeypatch.setattr(get_result_module, "_READ_AT_ONCE", 1)
    lab = make_lab(*FOUR)
    slow = lab.sites[D]
    slow.silent.add(PublishedResult)
    await lab.settle_until(RelayConfirmations)
    # So that the next round opens only when it has taken some minutes for the sum.
    lab.set_run("PAUSED")
    await lab.settle()
    found = slow.last
    assert isinstance(found, PublishedResult)
    began = lab.clock.at
    stream = download_blob(lab.ctx, site_id=D, run_id=RUN_ID, sha256=found.sum_blob_sha256, offset=0)
    async for _ in stream:
        lab.clock.advance(40)
    assert lab.clock.at - began > timedelta(seconds=240)
    for name in (A, B, C):
        await poll_instruction(lab.ctx, site_id=name, holding=[], wait_s=0.0)
    lab.set_run("ACTIVE")
    while await lab.driver.step(RUN_ID):
        pass
    assert lab.invited(1) == FOUR


async def test_poll_notes_that_the_site_was_heard_of_at_most_twice_a_minute(make_lab: MakeLab) -> None:
    lab = make_lab()

    def seen() -> object:
        return lab.db.read("seen", lambda session: session.get(Site, "a-site").last_seen_at)

    noted = []
    for _ in range(13):
        assert isinstance(await poll_instruction(lab.ctx, site_id=A, holding=[], wait_s=0), Idle)
        noted.append(seen())
        lab.clock.advance(5)
    assert len(set(noted)) == 3
    assert noted[-1] == lab.clock.at.replace(minute=1, second=0)
