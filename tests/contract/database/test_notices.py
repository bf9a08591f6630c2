"""What one process commits wakes the others: over PostgreSQL, through a lost connection, never instead of looking."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.services.context import EngineContext
from coordinator.services.wakeups import Waiting, Wakeups
from tests.contract.database.conftest import DatabasesOfTest
from tests.support.postgres import PostgresServer
from tests.unit.coordinator.services.engine_lab import COORDINATOR, EngineLab

pytestmark = pytest.mark.system

_ROOT = Path(__file__).parents[3]
_KNOWN = frozenset(waiting.value for waiting in Waiting)
# Another process: answers each wake-up of its driver with one for the sites.
_ANSWERING = """
import asyncio, sys
from coordinator.db.engines import engine_from_url
from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database

async def main():
    database = Database(engine_from_url(sys.argv[1]))
    board = NoticeBoard(database, url=sys.argv[1], known=frozenset({"driver", "sites"}),
                        hear=lambda notice: notice == "driver" and armed and board.post("sites"))
    armed = []
    task = asyncio.create_task(board.run())
    await board.is_listening.wait()
    armed.append(True)
    print("listening", flush=True)
    await task

asyncio.run(main())
"""


class Heard:
    """Counts what a board hears."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self._changed = asyncio.Event()

    def __call__(self, notice: str) -> None:
        self.notices.append(notice)
        self._changed.set()

    async def wait_for(self, notice: str, *, count: int) -> None:
        async with asyncio.timeout(30):
            while self.notices.count(notice) < count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def running(board: NoticeBoard) -> AsyncIterator[NoticeBoard]:
    task = asyncio.create_task(board.run())
    try:
        async with asyncio.timeout(30):
            await board.is_listening.wait()
        yield board
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_processes_wake_each_other_within_a_moment(postgres_databases: DatabasesOfTest) -> None:
    url = postgres_databases.new_url()
    other = subprocess.Popen(  # noqa: ASYNC220 # starting it takes no time, and the loop has nothing else to do yet
        [sys.executable, "-c", _ANSWERING, url], cwd=_ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert other.stdout is not None
        assert await asyncio.to_thread(other.stdout.readline) == "listening\n"
        heard = Heard()
        board = NoticeBoard(postgres_databases.open(url), url=url, hear=heard, known=_KNOWN)
        async with running(board):
            before = heard.notices.count("sites")
            seconds = []
            for number in range(20):
                began = time.perf_counter()
                board.post("driver")
                await heard.wait_for("sites", count=before + number + 1)
                seconds.append(time.perf_counter() - began)
    finally:
        other.terminate()
        other.wait(timeout=30)
        assert other.stdout is not None
        other.stdout.close()
    # There and back; the driver's own looking is every 0.2 s, a site's every 2 s.
    assert sorted(seconds)[10] < 0.2
    print(f"NOTIFY there and back: median {sorted(seconds)[10] * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms")


async def test_own_notices_are_not_heard_and_the_same_again_before_it_is_sent_is_one(
    postgres_databases: DatabasesOfTest,
) -> None:
    url = postgres_databases.new_url()
    mine, others = Heard(), Heard()
    database = postgres_databases.open(url)
    first = NoticeBoard(database, url=url, hear=mine, known=_KNOWN)
    second = NoticeBoard(database, url=url, hear=others, known=_KNOWN)
    async with running(first), running(second):
        mine.notices.clear()
        others.notices.clear()
        for _ in range(50):
            first.post("driver")
        await others.wait_for("driver", count=1)
        second.post("sites")
        await mine.wait_for("sites", count=1)
    assert mine.notices == ["sites"]
    assert others.notices == ["driver"]


async def test_listener_whose_connection_breaks_listens_again_and_has_everybody_look(
    postgres_databases: DatabasesOfTest, running_postgres: PostgresServer
) -> None:
    url = postgres_databases.new_url()
    heard = Heard()
    board = NoticeBoard(postgres_databases.open(url), url=url, hear=heard, known=_KNOWN)
    async with running(board):
        heard.notices.clear()
        n_broken = await asyncio.to_thread(running_postgres.terminate_connections, str(make_url(url).database))
        assert n_broken >= 1
        await heard.wait_for("driver", count=1)
        await heard.wait_for("sites", count=1)
        other = NoticeBoard(postgres_databases.open(url), url=url, hear=lambda _: None, known=_KNOWN)
        async with running(other):
            await board.is_listening.wait()
            other.post("sites")
            await heard.wait_for("sites", count=2)


def half(database: Database, lab: EngineLab, url: str) -> tuple[EngineContext, NoticeBoard]:
    """The parts of one process: bells of its own, rung by the others over the database."""
    wakeups = Wakeups(tell_others=lambda waiting: board.post(waiting.value))
    board = NoticeBoard(database, url=url, hear=lambda notice: wakeups.hear(Waiting(notice)), known=_KNOWN)
    ctx = EngineContext(
        db=database,
        blobs=lab.ctx.blobs,
        clock=lab.clock,
        signer=COORDINATOR,
        wakeups=wakeups,
        origin=lab.ctx.origin,
        n_threads=1,
    )
    return ctx, board


async def test_driver_and_gateway_apart_are_as_quick_as_together(
    postgres_databases: DatabasesOfTest, tmp_path: Path
) -> None:
    # Whoever misses a wake-up waits for a minute here: the run ends in time only by notices.
    url = postgres_databases.new_url()
    lab = EngineLab(tmp_path, ("a-site", "b-site", "c-site"), database=postgres_databases.open(url))
    gateway, gateway_board = half(postgres_databases.open(url), lab, url)
    driving, driver_board = half(postgres_databases.open(url), lab, url)
    lab.ctx = gateway
    driver = RoundDriver(driving, create_release=lab._release, settings=DriverSettings(poll_s=60.0))
    began = time.perf_counter()
    async with running(gateway_board), running(driver_board):
        task = asyncio.create_task(driver.run())
        try:
            async with asyncio.timeout(50):
                while not lab.released:
                    seen = gateway.wakeups.sites.count
                    if not any([await site.turn() for site in lab.sites.values()]):
                        await gateway.wakeups.sites.wait(seen, timeout_s=60.0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    seconds = time.perf_counter() - began
    assert lab.run().state == "COMPLETED"
    # Two rounds: opened, trained, keys, shares, uploads, confirmed, revealed, summed, folded, committed.
    print(f"a run of two rounds over two processes' bells: {seconds:.2f} s, {seconds / 20 * 1000:.0f} ms a phase")
