"""One suite for both databases: SQLite in every run of the tests, a real PostgreSQL where one may be started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import migrate
from coordinator.db.tx import Database
from tests.support.postgres import PostgresServer
from tests.unit.coordinator.services.engine_lab import EngineLab

_TEMPLATE = "wardround_template"

MakeLab = Callable[..., EngineLab]


@pytest.fixture(scope="session")
def running_postgres() -> Iterator[PostgresServer]:
    """One server for the session, with one database that has the tables and is copied for each test."""
    server = PostgresServer.create()
    try:
        server.create_database(_TEMPLATE)
        engine = engine_from_url(server.url_for(_TEMPLATE))
        migrate(engine)
        engine.dispose()
        yield server
    finally:
        server.dispose()


class DatabasesOfTest:
    """Empty databases with this version's tables, of one kind, each to be opened by as many as a test likes."""

    def __init__(self, folder: Path, server: PostgresServer | None) -> None:
        self._folder = folder
        self.server = server
        self._opened: list[Database] = []
        self._made: list[str] = []

    def new_url(self) -> str:
        if self.server is None:
            path = self._folder / f"{len(self._opened)}.db"
            engine = engine_from_url(f"sqlite:///{path}")
            # No power is cut in these tests.
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
            migrate(engine)
            engine.dispose()
            return f"sqlite:///{path}"
        self._made.append(self.server.create_database(template=_TEMPLATE))
        return self.server.url_for(self._made[-1])

    def open(self, url: str, *, patience_s: float = 10.0) -> Database:
        """A further process's view of the database, with connections of its own."""
        engine = engine_from_url(url)
        if self.server is None:
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        database = Database(engine, patience_s=patience_s)
        self._opened.append(database)
        return database

    def close(self) -> None:
        for database in self._opened:
            database.dispose()
        if self.server is not None:
            for name in self._made:
                self.server.drop_database(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabasesOfTest]:
    server = request.getfixturevalue("running_postgres") if request.param == "postgresql" else None
    made = DatabasesOfTest(tmp_path, server)
    yield made
    made.close()


@pytest.fixture
def postgres_databases(running_postgres: PostgresServer, tmp_path: Path) -> Iterator[DatabasesOfTest]:
    made = DatabasesOfTest(tmp_path, running_postgres)
    yield made
    made.close()


@pytest.fixture
def url(databases: DatabasesOfTest) -> str:
    return databases.new_url()


@pytest.fixture
def db(databases: DatabasesOfTest, url: str) -> Database:
    return databases.open(url)


@pytest.fixture
def make_lab(databases: DatabasesOfTest, tmp_path: Path) -> MakeLab:
    """Makes an engine with its sites over a new database."""
    made: list[EngineLab] = []

    def make(*names: str, quorum: int = 3, rounds: int = 1, database: Database | None = None) -> EngineLab:
        folder = tmp_path / f"lab{len(made)}"
        folder.mkdir()
        held = database or databases.open(databases.new_url())
        lab = EngineLab(folder, names or ("a-site", "b-site", "c-site"), quorum=quorum, rounds=rounds, database=held)
        made.append(lab)
        return lab

    return make
