"""Effects that take longer than a lease: kept while their driver lives, taken over when it does not, completed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Lease, OutboxEntry, Run
from coordinator.db.outbox import add_effect
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.services.effect_kinds import EffectKind
from fl_protocol.ids import RunId
from tests.contract.database.conftest import MakeLab
from tests.unit.coordinator.services.engine_lab import RUN_ID, START, EngineLab

_LEASE = timedelta(seconds=5)
OTHER_RUN = RunId("run-" + "z" * 26)


class SlowRelease:
    """An effect that waits until it is let go, for the runs that it is told."""

    def __init__(self, *slow: RunId) -> None:
        self.slow = set(slow)
        self.begun: list[RunId] = []
        self.let_go = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.fails = False

    async def __call__(self, run_id: RunId) -> None:
        self.begun.append(run_id)
        self.has_begun.set()
        if run_id in self.slow:
            await self.let_go.wait()
        if self.fails:
            raise RuntimeError("it could not be done")


def completed_runs_with_effects(lab: EngineLab) -> None:
    def write(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        run.state = "COMPLETED"
        columns = {column.key: getattr(run, column.key) for column in Run.__table__.columns}
        session.add(Run(**{**columns, "run_id": OTHER_RUN}))
        session.flush()
        for run_id in (RUN_ID, OTHER_RUN):
            add_effect(session, run_id, kind=EffectKind.CREATE_RELEASE, payload={}, now=START)

    lab.db.run_tx("runs", write)


def driver_of(lab: EngineLab, release: SlowRelease) -> RoundDriver:
    return RoundDriver(lab.ctx, create_release=release, settings=DriverSettings(poll_s=0.02, lease=_LEASE))


def entry(lab: EngineLab, run_id: RunId) -> OutboxEntry:
    query = select(OutboxEntry).where(OutboxEntry.run_id == run_id)
    return lab.db.read("entry", lambda session: session.scalars(query).one())


def lease(lab: EngineLab) -> Lease | None:
    return lab.db.read("lease", lambda session: session.get(Lease, f"run:{RUN_ID}"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 # the state is in the database, which rings no bell here
            await asyncio.sleep(0.02)


async def test_slow_effect_of_one_run_keeps_no_other_run_waiting(make_lab: MakeLab) -> None:
    lab = make_lab()
    completed_runs_with_effects(lab)
    release = SlowRelease(RUN_ID)
    task = asyncio.create_task(driver_of(lab, release).run())
    try:
        await release.has_begun.wait()
        await until(lambda: entry(lab, OTHER_RUN).done_at is not None)
        assert entry(lab, RUN_ID).done_at is None
        release.let_go.set()
        await until(lambda: entry(lab, RUN_ID).done_at is not None)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert sorted(release.begun) == sorted([RUN_ID, OTHER_RUN])


async def test_lease_is_renewed_while_an_effect_of_minutes_runs(make_lab: MakeLab) -> None:
    lab = make_lab()
    completed_runs_with_effects(lab)
    release, others = SlowRelease(RUN_ID), SlowRelease()
    waiting = driver_of(lab, others)
    task = asyncio.create_task(driver_of(lab, release).run())
    try:
        await until(lambda: RUN_ID in release.begun)
        # Two minutes pass, in steps that are shorter than what is left of a lease at its renewal.
        for _ in range(60):
            lab.clock.advance(2.0)
            await until(lambda: (held := lease(lab)) is not None and held.expires_at - lab.clock.at >= _LEASE / 2)
            assert not await waiting.step(RUN_ID)
        release.let_go.set()
        await until(lambda: entry(lab, RUN_ID).done_at is not None)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert others.begun == []
    assert release.begun.count(RUN_ID) == 1


async def test_driver_that_comes_back_late_changes_nothing_with_its_completion(make_lab: MakeLab) -> None:
    lab = make_lab()
    completed_runs_with_effects(lab)
    late, quick = SlowRelease(RUN_ID), SlowRelease()
    sleeper = asyncio.create_task(driver_of(lab, late).step(RUN_ID))
    await late.has_begun.wait()
    lab.clock.advance(5.1)
    assert await driver_of(lab, quick).step(RUN_ID)
    completed_at = entry(lab, RUN_ID).done_at
    assert completed_at == lab.clock.at
    lab.clock.advance(10.0)
    late.let_go.set()
    await sleeper
    assert (late.begun, quick.begun) == ([RUN_ID], [RUN_ID])
    assert entry(lab, RUN_ID).done_at == completed_at


async def test_failure_of_a_driver_that_lost_its_lease_is_not_counted(make_lab: MakeLab) -> None:
    lab = make_lab()
    completed_runs_with_effects(lab)
    late, also_slow = SlowRelease(RUN_ID), SlowRelease(RUN_ID)
    late.fails = True
    sleeper = asyncio.create_task(driver_of(lab, late).step(RUN_ID))
    await late.has_begun.wait()
    lab.clock.advance(5.1)
    successor = asyncio.create_task(driver_of(lab, also_slow).step(RUN_ID))
    await also_slow.has_begun.wait()
    late.let_go.set()
    await sleeper
    assert (entry(lab, RUN_ID).attempts, entry(lab, RUN_ID).last_error) == (0, None)
    also_slow.let_go.set()
    await successor
    assert entry(lab, RUN_ID).done_at is not None
