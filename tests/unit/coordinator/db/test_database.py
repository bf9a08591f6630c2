"""What is SQLite's own, and what needs no database; what both databases promise stands in tests/contract/database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from coordinator.db.faults import Fault, LinkLostError, fault_of, said_by
from coordinator.db.models import Base, Lease
from coordinator.db.tx import Database
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database.from_path(tmp_path / "test.db")
    Base.metadata.create_all(database.engine)
    yield database
    database.dispose()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr("coordinator.db.tx.time.sleep", made.append)
    return made


def locked() -> OperationalError:
    return OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked"))


def test_transaction_is_run_again_while_the_database_is_locked(db: Database, pauses: list[float]) -> None:
    tries = []

    def write(session: Session) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise locked()
        return "done"

    assert db.run_tx("again", write) == "done"
    assert len(tries) == 3
    assert pauses == sorted(pauses)

    def always(session: Session) -> None:
        raise locked()

    with pytest.raises(DatabaseBusyError) as caught:
        db.run_tx("never", always)
    assert caught.value.facts["attempts"] == 6


def test_lost_server_is_asked_for_as_long_as_patience_lasts_and_no_longer(db: Database, pauses: list[float]) -> None:
    patient = Database(db.engine, patience_s=3.0)

    def lost(session: Session) -> None:
        raise LinkLostError("connection reset")

    with pytest.raises(DatabaseUnavailableError) as caught:
        patient.run_tx("lost", lost)
    assert sum(pauses) == pytest.approx(3.0)
    assert max(pauses) <= 1.0
    assert caught.value.facts == {"tx": "lost", "error": "connection reset", "is_outcome_known": True}
    with pytest.raises(DatabaseUnavailableError):
        patient.read("lost", lost, patience_s=0.0)
    assert sum(pauses) == pytest.approx(3.0)


def test_key_that_is_taken_is_a_fault_at_once_where_one_writes_at_a_time(db: Database) -> None:
    from tests.contract.database.rows import NOW

    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        session.add(Lease(name="x", holder="y", expires_at=NOW))

    db.run_tx("first", write)
    with pytest.raises(DBAPIError):
        db.run_tx("second", write)
    assert len(tries) == 2


def server_error(state: str, kind: type[DBAPIError] = ProgrammingError) -> DBAPIError:
    # The shape of pg8000's errors: one dictionary of the protocol's fields.
    return kind("SELECT", {}, Exception({"S": "ERROR", "C": state, "M": f"the server's words for {state}"}))


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (server_error("40001"), Fault.CONTENTION),
        (server_error("40P01"), Fault.CONTENTION),
        (server_error("23505"), Fault.TAKEN),
        (server_error("57P01"), Fault.LOST),
        (server_error("57P03"), Fault.LOST),
        (server_error("53300"), Fault.LOST),
        (server_error("08006"), Fault.LOST),
        (server_error("28P01"), Fault.TURNED_AWAY),
        (server_error("28000", InterfaceError), Fault.TURNED_AWAY),
        (server_error("3D000"), Fault.TURNED_AWAY),
        (server_error("42P01"), Fault.UNWRITABLE),
        (server_error("25006"), Fault.UNWRITABLE),
        (server_error("42501"), Fault.UNWRITABLE),
        (server_error("42601"), Fault.OTHER),
        (server_error("23503"), Fault.OTHER),
        (InterfaceError("SELECT", {}, Exception("network error")), Fault.LOST),
        (ProgrammingError("SELECT", {}, Exception("x"), connection_invalidated=True), Fault.LOST),
        (LinkLostError("reset"), Fault.LOST),
        (PoolTimeoutError("QueuePool limit"), Fault.NO_CONNECTION_FREE),
        (locked(), Fault.CONTENTION),
        (OperationalError("SELECT", {}, sqlite3.OperationalError("no such table")), Fault.UNWRITABLE),
        (OperationalError("SELECT", {}, sqlite3.OperationalError("no such column")), Fault.OTHER),
        (OSError("a file of somebody else's"), Fault.OTHER),
        (RuntimeError("no"), Fault.OTHER),
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else None,
)
def test_error_means_what_the_database_meant(error: BaseException, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_servers_own_sentence_is_what_is_told() -> None:
    assert said_by(server_error("40001")) == "the server's words for 40001"
