"""Whole runs of the engine with its sites, on either database, by one driver and by several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import migrate
from coordinator.db.tx import Database
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.services.context import EngineContext
from coordinator.services.wakeups import Wakeups
from fl_protocol.audit.verify import AuditVerified, verify_log
from tests.contract.database.conftest import DatabasesOfTest, MakeLab
from tests.contract.database.rows import log_of
from tests.support.postgres import PostgresServer
from tests.unit.coordinator.services.engine_lab import COORDINATOR, RUN_ID, EngineLab


def results(lab: EngineLab) -> tuple[object, ...]:
    """What a run ends with, byte for byte."""
    run = lab.run()
    return (
        run.state,
        run.reason,
        run.public_state_sha256,
        [(lab.round(index).state, lab.round(index).state_sha256_after) for index in range(2)],
        [sorted(lab.states(index).items()) for index in range(2)],
        {site.state.digest() for site in lab.sites.values()},
    )


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, ...]]:
    """The same run, undisturbed, on the embedded database."""
    lab = EngineLab(tmp_path_factory.mktemp("undisturbed"), ("a-site", "b-site", "c-site"))
    asyncio.run(lab.settle())
    yield results(lab)
    lab.db.dispose()


def assert_log_is_valid(lab: EngineLab) -> None:
    rows, checkpoints = log_of(lab.db)
    assert isinstance(verify_log(rows, checkpoints, COORDINATOR.spki_der), AuditVerified)
    assert sum(b'"upload.accepted"' in row.body for row in rows) == 6


def test_whole_run_gives_the_same_bytes_on_either_database(make_lab: MakeLab, expected: tuple[object, ...]) -> None:
    lab = make_lab()
    asyncio.run(lab.settle())
    assert expected[0] == "COMPLETED"
    assert results(lab) == expected
    assert lab.released == [RUN_ID]
    assert_log_is_valid(lab)


def test_driver_killed_between_any_two_steps_is_continued(make_lab: MakeLab, expected: tuple[object, ...]) -> None:
    lab = make_lab()
    asyncio.run(lab.settle(restart_each_step=True))
    assert results(lab) == expected


def test_two_drivers_at_once_drive_one_run_to_the_same_end(
    databases: DatabasesOfTest, make_lab: MakeLab, expected: tuple[object, ...]
) -> None:
    url = databases.new_url()
    lab = make_lab(database=databases.open(url))
    contexts = [
        lab.ctx,
        EngineContext(
            db=databases.open(url),
            blobs=lab.ctx.blobs,
            clock=lab.clock,
            signer=COORDINATOR,
            wakeups=Wakeups(),
            origin=lab.ctx.origin,
            n_threads=1,
        ),
    ]

    async def run() -> None:
        drivers = [
            RoundDriver(ctx, create_release=lab._release, settings=DriverSettings(poll_s=0.02)) for ctx in contexts
        ]
        tasks = [asyncio.create_task(driver.run()) for driver in drivers]
        try:
            async with asyncio.timeout(120):
                while not lab.released or lab.run().state != "COMPLETED":
                    # Nobody renews while the clock stands: leases change hands all the time when it leaps.
                    lab.clock.advance(2.0)
                    if not any([await site.turn() for site in lab.sites.values()]):
                        await asyncio.sleep(0.02)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert results(lab) == expected
    assert_log_is_valid(lab)


@pytest.mark.system
def test_postgresql_restarted_after_every_few_steps_changes_nothing(
    tmp_path: Path, expected: tuple[object, ...], postgres_of_its_own: PostgresServer
) -> None:
    database = Database(engine_from_url(postgres_of_its_own.url))
    migrate(database.engine)
    lab = EngineLab(tmp_path, ("a-site", "b-site", "c-site"), database=database)
    n_steps = 0

    async def run() -> None:
        nonlocal n_steps
        for _ in range(400):
            moved = False
            while await lab.driver.step(RUN_ID):
                moved = True
                n_steps += 1
                if n_steps % 3 == 0:
                    postgres_of_its_own.restart()
            for site in lab.sites.values():
                moved |= await site.turn()
                n_steps += 1
                if n_steps % 7 == 0:
                    postgres_of_its_own.restart()
            if not moved:
                return

    asyncio.run(run())
    assert results(lab) == expected
    assert_log_is_valid(lab)
    assert n_steps > 30
    database.dispose()


@pytest.fixture
def postgres_of_its_own() -> Iterator[PostgresServer]:
    made = PostgresServer.create()
    yield made
    made.dispose()
