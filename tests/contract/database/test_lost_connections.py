"""PostgreSQL goes away: before, in and after a transaction, in its COMMIT, and for longer than anybody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from coordinator.db.commit_markers import forget_markers
from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import is_current, migrate
from coordinator.db.models import CommitMarker, Lease, OutboxEntry
from coordinator.db.outbox import add_effect
from coordinator.db.tx import Database
from coordinator.errors import DatabaseUnavailableError
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.relay import CommitCutter, Cut
from tests.contract.database.rows import NOW, RUN, add_run
from tests.support.postgres import PostgresServer
from tests.support.relay import Relay

pytestmark = pytest.mark.system


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own, because it is stopped."""
    made = PostgresServer.create()
    engine = engine_from_url(made.url)
    migrate(engine)
    engine.dispose()
    yield made
    made.dispose()


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    made = Database(engine_from_url(server.url))
    yield made
    made.dispose()


def add_lease(name: str) -> object:
    return lambda session: session.add(Lease(name=name, holder="h", expires_at=NOW))


def names(database: Database) -> list[str]:
    return database.read("names", lambda session: list(session.scalars(select(Lease.name).order_by(Lease.name))))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_pool_recovers_from_a_restart_between_two_transactions(
    server: PostgresServer, database: Database, mode: str
) -> None:
    database.run_tx("before", add_lease("before"))
    server.restart(mode)
    database.run_tx("after", add_lease("after"))
    assert names(database) == ["after", "before"]
    server.restart(mode)
    assert names(database)[-1] == "before"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_transaction_is_run_again_after_a_restart_in_its_middle(
    server: PostgresServer, database: Database, mode: str
) -> None:
    tries = []

    def write(session: Session) -> str:
        tries.append(1)
        session.add(Lease(name="once", holder=str(len(tries)), expires_at=NOW))
        session.flush()
        if len(tries) == 1:
            server.restart(mode)
        return f"try {len(tries)}"

    assert database.run_tx("interrupted", write) == "try 2"
    assert database.read("look", lambda session: session.get(Lease, "once").holder) == "2"


def test_read_is_run_again_after_a_restart_in_its_middle(server: PostgresServer, database: Database) -> None:
    database.run_tx("before", add_lease("a"))
    tries = []

    def look(session: Session) -> list[str]:
        tries.append(1)
        session.scalars(select(Lease.name)).all()
        if len(tries) == 1:
            server.restart()
        return list(session.scalars(select(Lease.name)))

    assert database.read("look", look) == ["a"]
    assert len(tries) == 2


def test_connection_that_is_reset_while_the_pool_asks_whether_it_lives_is_replaced(
    postgres_databases: DatabasesOfTest, running_postgres: PostgresServer
) -> None:
    url = postgres_databases.new_url()
    with Relay(f"127.0.0.1:{running_postgres.port}") as relay:
        made = Database(engine_from_url(url.replace(f"127.0.0.1:{running_postgres.port}/", f"{relay.address}/")))
        made.run_tx("before", add_lease("before"))
        relay.freeze()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(names, made)
            time.sleep(0.5)
            assert not asking.done()
            relay.cut()
            assert asking.result(timeout=30) == ["before"]
        made.dispose()


def test_transaction_waits_while_the_server_is_away(server: PostgresServer, database: Database) -> None:
    names(database)
    server.stop("fast")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(database.run_tx, "waits", add_lease("patient"))
        time.sleep(0.5)
        assert not waiting.done()
        server.start()
        waiting.result(timeout=30)
    assert names(database) == ["patient"]


def test_server_that_stays_away_is_a_typed_error_and_nothing_was_written(server: PostgresServer) -> None:
    impatient = Database(engine_from_url(server.url), patience_s=0.2)
    server.stop("fast")
    with pytest.raises(DatabaseUnavailableError) as caught:
        impatient.run_tx("writes", add_lease("never"))
    assert caught.value.code == "database-unavailable"
    assert caught.value.message.startswith("the database does not answer; ")
    assert caught.value.facts["is_outcome_known"] is True
    with pytest.raises(DatabaseUnavailableError):
        impatient.read("reads", lambda session: session.get(Lease, "never"))
    with pytest.raises(DatabaseUnavailableError):
        is_current(impatient.engine)
    server.start()
    assert names(impatient) == []
    impatient.dispose()


def test_wrong_password_is_said_at_once_in_the_servers_words() -> None:
    server = PostgresServer.create(password="right one")
    try:
        right = Database(engine_from_url(server.url_for("wardround")))
        migrate(right.engine)
        assert names(right) == []
        right.dispose()
        wrong = Database(engine_from_url(server.url_for("wardround").replace("right one", "wrong")))
        with pytest.raises(DatabaseUnavailableError) as caught:
            wrong.read("reads", lambda session: session.get(Lease, "x"))
        assert "password authentication failed" in str(caught.value.facts["error"])
        assert "wrong" not in str(caught.value)
        wrong.dispose()
    finally:
        server.dispose()


# The answer to COMMIT is lost


@pytest.fixture
def cutter(running_postgres: PostgresServer) -> Iterator[CommitCutter]:
    with CommitCutter(running_postgres.port) as made:
        yield made


@pytest.fixture
def through_cutter(
    postgres_databases: DatabasesOfTest, running_postgres: PostgresServer, cutter: CommitCutter
) -> Iterator[Database]:
    url = postgres_databases.new_url()
    made = Database(engine_from_url(url.replace(f":{running_postgres.port}/", f":{cutter.port}/")))
    made.run_tx("run", add_run)
    yield made
    made.dispose()


@pytest.mark.parametrize("cut", list(Cut))
def test_commit_whose_answer_is_lost_is_performed_exactly_once(
    through_cutter: Database, cutter: CommitCutter, cut: Cut
) -> None:
    # Not idempotent on purpose: each try adds one more row.
    tries = []

    def write(session: Session) -> int:
        tries.append(1)
        add_effect(session, RUN, kind="fold-round", payload={"try": len(tries)}, now=NOW)
        return len(tries)

    cutter.cut_next(cut)
    answer = through_cutter.run_tx("lost-answer", write)
    assert cutter.n_cut == 1
    rows = through_cutter.read("rows", lambda session: session.scalars(select(OutboxEntry)).all())
    assert len(rows) == 1
    expected = 1 if cut is Cut.AFTER else 2
    assert (answer, len(tries), rows[0].payload["try"]) == (expected, expected, expected)


def test_what_was_returned_can_be_read_after_a_commit_whose_answer_was_lost(
    through_cutter: Database, cutter: CommitCutter
) -> None:
    def write(session: Session) -> Lease:
        row = Lease(name="r", holder="mine", expires_at=NOW)
        session.add(row)
        return row

    cutter.cut_next(Cut.AFTER)
    assert through_cutter.run_tx("lost-answer", write).holder == "mine"


def test_transaction_that_only_looked_leaves_no_marker_and_old_markers_go(through_cutter: Database) -> None:
    def count(session: Session) -> int:
        return session.scalar(select(func.count()).select_from(CommitMarker)) or 0

    before = through_cutter.read("count", count)
    assert through_cutter.run_tx("looks", lambda session: session.get(Lease, "none")) is None
    assert through_cutter.read("count", count) == before == 1
    server_time = through_cutter.server_time()
    assert server_time is not None
    assert through_cutter.run_tx("forget", lambda session: forget_markers(session, before=server_time)) == 1


def test_commit_that_is_still_under_way_is_waited_for(
    postgres_databases: DatabasesOfTest, running_postgres: PostgresServer
) -> None:
    # The first transaction has left its marker and is not over: the one that asks waits until it is.
    from coordinator.db.commit_markers import leave_marker
    from coordinator.db.tx import _Patience

    database = postgres_databases.open(postgres_databases.new_url())
    asked = threading.Event()
    with database.engine.connect() as slow, ThreadPoolExecutor(1) as pool:
        leave_marker(slow, "m" * 32)

        def ask() -> bool:
            asked.set()
            return database._was_committed("m" * 32, _Patience("asks", 10.0), OSError("gone"))

        answer = pool.submit(ask)
        asked.wait()
        time.sleep(0.5)
        assert not answer.done()
        slow.commit()
        assert answer.result(timeout=20) is True
    assert database._was_committed("n" * 32, _Patience("asks", 10.0), OSError("gone")) is False


def test_password_comes_from_its_file(tmp_path: Path) -> None:
    from coordinator.installation import Installation
    from coordinator.settings import CoordinatorSettings

    secret = tmp_path / "database.password"
    secret.write_text("p @/w\n")
    secret.chmod(0o600)
    settings = CoordinatorSettings(
        database={"url": "postgresql+pg8000://wardround@db.example/wardround", "password_file": "database.password"}
    )
    installation = Installation(directory=tmp_path, settings=settings)
    url = make_url(installation.database_url())
    assert (url.username, url.password, url.host) == ("wardround", "p @/w", "db.example")
