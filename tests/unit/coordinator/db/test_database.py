from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from coordinator.db.audit import append_audit, audit_head, write_checkpoint
from coordinator.db.migrate import downgrade, is_current, migrate
from coordinator.db.models import AuditCheckpoint, AuditRow, Base, Lease, Run, Site
from coordinator.db.outbox import (
    add_effect,
    append_event,
    due_effects,
    note_effect_failure,
    pending_events,
    take_open_effect,
)
from coordinator.db.tx import Database
from coordinator.driver.leases import claim_lease, holds_lease, release_lease
from coordinator.errors import DatabaseBusyError
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.events import AuditKind
from fl_protocol.audit.verify import AuditFault, AuditVerified, verify_log
from fl_protocol.ids import RunId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNER = seeded_signer("coordinator")
RUN = RunId("run-" + "c" * 26)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database.from_path(tmp_path / "test.db")
    Base.metadata.create_all(database.engine)
    yield database
    database.dispose()


def add_run(session: Session) -> None:
    session.add(
        Run(
            run_id=RUN,
            name="n",
            state="ACTIVE",
            run_spec_json=b"",
            run_spec_sha256="",
            layout_json=b"",
            layout_blob_sha256="",
            initial_blob_sha256="",
            public_state_sha256="",
            public_state_blob_sha256="",
            created_by="user:x",
            created_at=NOW,
        )
    )


# Migrations


def test_migrations_go_up_down_up_and_equal_the_models(tmp_path: Path) -> None:
    database = Database.from_path(tmp_path / "migrated.db")
    assert not is_current(database.engine)
    migrate(database.engine)
    migrate(database.engine)
    assert is_current(database.engine)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    downgrade(database.engine, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    migrate(database.engine)
    assert is_current(database.engine)
    database.dispose()


def test_tables_are_valid_for_postgresql() -> None:
    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


# Transactions


def test_transaction_that_fails_writes_nothing(db: Database) -> None:
    def write(session: Session) -> None:
        session.add(Lease(name="x", holder="y", expires_at=NOW))
        session.flush()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        db.run_tx("fails", write)
    assert db.read("look", lambda session: session.get(Lease, "x")) is None


def test_transaction_is_run_again_while_the_database_is_locked(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr("coordinator.db.tx.time.sleep", lambda seconds: None)
    tries = []

    def write(session: Session) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked"))
        return "done"

    assert db.run_tx("again", write) == "done"
    assert len(tries) == 3

    def always(session: Session) -> None:
        raise OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(DatabaseBusyError) as caught:
        db.run_tx("never", always)
    assert caught.value.facts["attempts"] == 6


def test_other_database_errors_are_not_tried_again(db: Database) -> None:
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        session.add(Site(site_id="a", state="NOT_A_STATE", created_at=NOW))
        session.flush()

    with pytest.raises(IntegrityError):
        db.run_tx("wrong", write)
    assert len(tries) == 1


def test_two_writers_at_once_do_not_lose_an_update(db: Database) -> None:
    db.run_tx("start", lambda session: session.add(Lease(name="n", holder="0", expires_at=NOW)))

    def increment() -> None:
        for _ in range(20):
            db.run_tx("increment", add_one)

    def add_one(session: Session) -> None:
        lease = session.get(Lease, "n")
        assert lease is not None
        lease.holder = str(int(lease.holder) + 1)

    threads = [threading.Thread(target=increment) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.read("end", lambda session: session.get(Lease, "n").holder) == "60"  # type: ignore[union-attr]


def test_instants_come_back_aware_and_naive_ones_are_refused(db: Database) -> None:
    east = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    db.run_tx("add", lambda session: session.add(Lease(name="t", holder="h", expires_at=east)))
    found = db.read("look", lambda session: session.get(Lease, "t"))
    assert found is not None
    assert found.expires_at == NOW
    assert found.expires_at.tzinfo is UTC
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 # the point of the test
    with pytest.raises(StatementError):
        db.run_tx("naive", lambda session: session.add(Lease(name="u", holder="h", expires_at=naive)))


def test_foreign_keys_are_enforced(db: Database) -> None:
    with pytest.raises(IntegrityError):
        db.run_tx("orphan", lambda session: append_event(session, "run-none", kind="k", payload={}, now=NOW))


# Audit


def append(db: Database, count: int) -> None:
    for number in range(count):
        db.run_tx(
            "append",
            lambda session, number=number: append_audit(
                session, AuditKind.RUN_STATE, actor="coordinator", facts={"number": number}, now=NOW
            ),
        )


def log_of(db: Database) -> tuple[list[Leaf], list[SignedBody]]:
    def read(session: Session) -> tuple[list[Leaf], list[SignedBody]]:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq))
        checkpoints = session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size))
        return (
            [Leaf(seq=row.seq, body=row.body, leaf_sha256=row.leaf_sha256) for row in rows],
            [SignedBody(body=row.body, signature=row.signature) for row in checkpoints],
        )

    return db.read("log", read)


def test_audit_log_verifies_against_its_checkpoints_and_an_altered_row_is_named(db: Database) -> None:
    append(db, 5)
    for _ in range(2):
        db.run_tx("checkpoint", lambda session: write_checkpoint(session, signer=SIGNER, origin="o", now=NOW))
    append(db, 3)
    rows, checkpoints = log_of(db)
    assert len(checkpoints) == 1
    verified = verify_log(rows, checkpoints, SIGNER.spki_der)
    assert isinstance(verified, AuditVerified)
    assert (verified.size, verified.head) == db.read("head", audit_head)

    def alter(session: Session) -> None:
        row = session.get(AuditRow, 2)
        assert row is not None
        row.body = row.body.replace(b'"number":2', b'"number":9')

    db.run_tx("alter", alter)
    rows, checkpoints = log_of(db)
    fault = verify_log(rows, checkpoints, SIGNER.spki_der)
    assert isinstance(fault, AuditFault)
    assert fault.seq == 2


def test_audit_of_a_transaction_that_fails_is_not_recorded(db: Database) -> None:
    append(db, 1)

    def write(session: Session) -> None:
        append_audit(session, AuditKind.RUN_STATE, actor="coordinator", facts={}, now=NOW)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        db.run_tx("fails", write)
    append(db, 1)
    rows, _ = log_of(db)
    assert [row.seq for row in rows] == [0, 1]
    assert isinstance(verify_log(rows, [], SIGNER.spki_der), AuditVerified)


# Outbox


def test_events_are_read_in_order_until_consumed(db: Database) -> None:
    db.run_tx("run", add_run)
    for number in range(3):
        db.run_tx(
            "event", lambda session, number=number: append_event(session, RUN, kind=f"k{number}", payload={}, now=NOW)
        )

    def consume_first(session: Session) -> list[str]:
        rows = pending_events(session, RUN)
        rows[0].consumed_at = NOW
        return [row.kind for row in rows]

    assert db.run_tx("consume", consume_first) == ["k0", "k1", "k2"]
    assert db.run_tx("consume", consume_first) == ["k1", "k2"]


def test_effect_is_taken_once_and_waits_after_a_failure(db: Database) -> None:
    db.run_tx("run", add_run)
    db.run_tx("effect", lambda session: add_effect(session, RUN, kind="fold-round", payload={"a": [1]}, now=NOW))

    def due(session: Session, now: datetime = NOW) -> list[int]:
        return [row.id for row in due_effects(session, RUN, now=now)]

    (effect_id,) = db.read("due", due)
    attempts = db.run_tx(
        "fail",
        lambda session: note_effect_failure(session, effect_id, error="e", now=NOW, pause=timedelta(seconds=5)),
    )
    assert attempts == 1
    assert db.read("due", due) == []
    assert db.read("due", lambda session: due(session, NOW + timedelta(seconds=5))) == [effect_id]
    assert [db.run_tx("take", lambda session: take_open_effect(session, effect_id, now=NOW)) for _ in range(2)] == [
        True,
        False,
    ]


# Leases


def claim(db: Database, holder: str, at: datetime) -> bool:
    return db.run_tx(
        "claim", lambda session: claim_lease(session, RUN, holder=holder, now=at, duration=timedelta(seconds=10))
    )


def holds(db: Database, holder: str, at: datetime) -> bool:
    return db.read("holds", lambda session: holds_lease(session, RUN, holder=holder, now=at))


def test_lease_belongs_to_one_holder_until_it_runs_out(db: Database) -> None:
    assert claim(db, "one", NOW)
    assert not claim(db, "two", NOW + timedelta(seconds=9))
    assert claim(db, "one", NOW + timedelta(seconds=6))
    assert not claim(db, "two", NOW + timedelta(seconds=15))
    assert claim(db, "two", NOW + timedelta(seconds=16))
    assert not claim(db, "one", NOW + timedelta(seconds=17))
    assert holds(db, "two", NOW + timedelta(seconds=17))
    assert not holds(db, "two", NOW + timedelta(seconds=26))


def test_lease_given_back_is_free_and_another_holders_is_left_alone(db: Database) -> None:
    claim(db, "one", NOW)
    db.run_tx("release", lambda session: release_lease(session, RUN, holder="two"))
    assert holds(db, "one", NOW)
    db.run_tx("release", lambda session: release_lease(session, RUN, holder="one"))
    assert claim(db, "two", NOW)
