"""The coordinator is down, or without its database, for longer than any deadline: nobody is given up for that time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from coordinator_engine_lab import EXCHANGE_PHASES, RUN_ID, EngineLab
from sqlalchemy.orm import Session

from coordinator.errors import DatabaseUnavailableError
from coordinator.rounds.instructions import RoundRef
from coordinator.services.accept_round import accept_round
from coordinator.services.report_progress import SiteActivity, report_progress
from coordinator.services.site_instructions import Instruction, RelayShares, TrainRound
from fl_protocol.ids import SiteId

MakeLab = Callable[..., EngineLab]
A, B, C, D = (SiteId(f"{letter}-site") for letter in "abcd")


async def test_coordinator_that_was_down_gives_up_nobody_who_trained_meanwhile(make_lab: MakeLab) -> None:
    lab = make_lab(A, B, C, D)
    await lab.settle_until(TrainRound)
    ref = RoundRef(run_id=RUN_ID, round_index=0, round_attempt=0)

    async def say_step(*sites: SiteId, step: int) -> None:
        for site in sites:
            await report_progress(
                lab.ctx, site_id=site, round=ref, activity=SiteActivity.TRAINING, step=step, steps=1000
            )

    async def drive() -> None:
        while await lab.driver.step(RUN_ID):
            pass

    for site in (A, B, C, D):
        await accept_round(lab.ctx, site_id=site, round=ref)
    # Past the round's deadline of an hour, by steps.
    for step in range(8):
        lab.clock.advance(500)
        await say_step(A, B, C, D, step=step)
        await drive()
    # Down for longer than the idle deadline of ten minutes, and a driver is there before any site.
    lab.clock.advance(1000)
    lab.restart_driver()
    await drive()
    assert set(lab.states().values()) == {"TRAINING"}
    # Whoever is silent from then on is given up as ever.
    lab.clock.advance(595)
    await say_step(A, B, C, step=9)
    await drive()
    assert set(lab.states().values()) == {"TRAINING"}
    lab.clock.advance(5)
    await drive()
    assert lab.states() == {"a-site": "TRAINING", "b-site": "TRAINING", "c-site": "TRAINING", "d-site": "DROPPED"}


@pytest.mark.parametrize("phase", EXCHANGE_PHASES)
async def test_coordinator_that_was_down_goes_on_in_the_phase_that_it_left(
    make_lab: MakeLab, phase: type[Instruction]
) -> None:
    lab = make_lab()
    await lab.settle_until(phase)
    lab.clock.advance(1000)
    lab.restart_driver()
    while await lab.driver.step(RUN_ID):
        pass
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"
    assert lab.exchange(exchange_attempt=1) is None


async def test_driver_without_its_database_gives_up_nobody_who_could_not_be_heard(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)
    lab.clock.advance(1000)
    real, failures = lab.db.read_async, [DatabaseUnavailableError("the database does not answer", tx="any")]

    async def back_again(name: str, fn: Callable[[Session], object]) -> object:
        if failures:
            raise failures.pop()
        return await real(name, fn)

    monkeypatch.setattr(lab.db, "read_async", back_again)
    driving = asyncio.create_task(lab.driver.run())
    try:
        async with asyncio.timeout(30):
            while lab.driver.last_turn_at is None:  # noqa: ASYNC110 # of a turn that changes little it tells nobody
                await asyncio.sleep(0)
    finally:
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
    exchange = lab.exchange()
    assert exchange is not None
    assert (exchange.state, exchange.phase_deadline_at) == ("COLLECTING", lab.clock.at + timedelta(seconds=600))
