"""What ``run_tx`` and ``read`` promise, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, Event, Exchange, Lease, OutboxEntry, Round, Site
from coordinator.db.outbox import add_effect, append_event
from coordinator.db.tx import Database
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.rows import NOW, RUN, add_run


def in_threads(*works: Callable[[], object]) -> None:
    """Run all at once; the first failure is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 # raised below, in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_transaction_that_fails_writes_nothing(db: Database) -> None:
    def write(session: Session) -> None:
        session.add(Lease(name="x", holder="y", expires_at=NOW))
        session.flush()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        db.run_tx("fails", write)
    assert db.read("look", lambda session: session.get(Lease, "x")) is None


def test_rule_of_the_schema_that_is_broken_is_raised_at_once(db: Database) -> None:
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        session.add(Site(site_id="a", state="NOT_A_STATE", created_at=NOW))
        session.flush()

    with pytest.raises(DBAPIError):
        db.run_tx("wrong", write)
    assert len(tries) == 1


def test_row_that_belongs_to_nothing_is_refused(db: Database) -> None:
    with pytest.raises(DBAPIError):
        db.run_tx("orphan", lambda session: append_event(session, "run-none", kind="k", payload={}, now=NOW))
    assert db.read("none", lambda session: session.scalars(select(Event)).all()) == []


def test_increments_at_once_from_two_processes_are_all_kept(databases: DatabasesOfTest, url: str) -> None:
    replicas = [databases.open(url), databases.open(url)]
    replicas[0].run_tx("start", lambda session: session.add(Lease(name="n", holder="0", expires_at=NOW)))

    def add_one(session: Session) -> None:
        lease = session.get(Lease, "n")
        assert lease is not None
        lease.holder = str(int(lease.holder) + 1)

    def increment(replica: Database) -> Callable[[], None]:
        return lambda: [replica.run_tx("increment", add_one) for _ in range(20)] and None

    in_threads(*(increment(replicas[number % 2]) for number in range(6)))
    assert replicas[0].read("end", lambda session: session.get(Lease, "n").holder) == "120"


def test_write_skew_is_not_possible(databases: DatabasesOfTest, url: str) -> None:
    # Each transaction reads both rows and clears one only if the other is set: serially, one row is always set.
    replicas = [databases.open(url), databases.open(url)]
    names = ("left", "right")

    def reset(session: Session) -> None:
        for name in names:
            row = session.get(Lease, name)
            if row is None:
                session.add(Lease(name=name, holder="set", expires_at=NOW))
            else:
                row.holder = "set"

    def clear(which: int) -> Callable[[Session], None]:
        def write(session: Session) -> None:
            rows = {row.name: row for row in session.scalars(select(Lease))}
            together.wait(timeout=0.2) if not together.broken else None
            if rows[names[1 - which]].holder == "set":
                rows[names[which]].holder = "clear"

        def patient(session: Session) -> None:
            try:
                write(session)
            except threading.BrokenBarrierError:
                # SQLite lets the second in only when the first is done; PostgreSQL's second try comes alone.
                rows = {row.name: row for row in session.scalars(select(Lease))}
                if rows[names[1 - which]].holder == "set":
                    rows[names[which]].holder = "clear"

        return patient

    for _ in range(5):
        replicas[0].run_tx("reset", reset)
        together = threading.Barrier(2)
        in_threads(
            lambda: replicas[0].run_tx("clear-left", clear(0)),
            lambda: replicas[1].run_tx("clear-right", clear(1)),
        )
        left = replicas[0].read("count", lambda session: [row.holder for row in session.scalars(select(Lease))])
        assert sorted(left) == ["clear", "set"]


def test_two_replicas_that_insert_the_same_row_give_one_answer(databases: DatabasesOfTest, url: str) -> None:
    replicas = [databases.open(url), databases.open(url)]

    def found_or_made(name: str) -> Callable[[Session], str]:
        def write(session: Session) -> str:
            row = session.get(Lease, name)
            if row is None:
                session.add(Lease(name=name, holder="first", expires_at=NOW))
                return "made"
            return "found"

        return write

    for number in range(20):
        answers: list[str] = []

        def ask(replica: Database, name: str = f"row-{number}", answers: list[str] = answers) -> None:
            answers.append(replica.run_tx("same", found_or_made(name)))

        in_threads(*(partial(ask, replica) for replica in (*replicas, *replicas)))
        assert sorted(answers) == ["found", "found", "found", "made"]


def test_read_sees_one_moment_though_others_write(db: Database) -> None:
    db.run_tx("start", lambda session: session.add(Lease(name="a", holder="old", expires_at=NOW)))
    db.run_tx("start", lambda session: session.add(Lease(name="b", holder="old", expires_at=NOW)))

    def renew(session: Session) -> None:
        for row in session.scalars(select(Lease)):
            row.holder = "new"

    def look(session: Session) -> list[str]:
        before = session.scalar(select(Lease.holder).where(Lease.name == "a"))
        in_threads(lambda: db.run_tx("renew", renew))
        after = session.scalar(select(Lease.holder).where(Lease.name == "b"))
        return [str(before), str(after)]

    assert db.read("look", look) == ["old", "old"]
    assert db.read("again", lambda session: session.get(Lease, "b").holder) == "new"


def test_what_a_transaction_returns_outlives_it(db: Database) -> None:
    def write(session: Session) -> Lease:
        row = Lease(name="kept", holder="h", expires_at=NOW)
        session.add(row)
        return row

    assert db.run_tx("keep", write).holder == "h"
    assert db.read("look", lambda session: session.get(Lease, "kept")).expires_at == NOW


# Types


def test_instants_come_back_aware_and_naive_ones_are_refused(db: Database) -> None:
    east = datetime(2026, 1, 1, 2, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    db.run_tx("add", lambda session: session.add(Lease(name="t", holder="h", expires_at=east)))
    found = db.read("look", lambda session: session.get(Lease, "t"))
    assert found is not None
    assert found.expires_at == datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert found.expires_at.tzinfo is UTC
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 # the point of the test
    with pytest.raises(StatementError):
        db.run_tx("naive", lambda session: session.add(Lease(name="u", holder="h", expires_at=naive)))


def test_bytes_of_every_value_come_back_as_they_were(db: Database) -> None:
    body = bytes(range(256)) * 5000
    db.run_tx("run", add_run)

    def write(session: Session) -> None:
        session.add(Site(site_id="a-site", state="ENROLLED", signing_spki=b"", created_at=NOW))
        session.flush()
        session.add(
            Approval(
                run_id=RUN,
                site_id="a-site",
                decision="approved",
                statement_body=body,
                statement_signature=b"\x00\\x27'\xff",
                at=NOW,
            )
        )

    db.run_tx("approve", write)
    row = db.read("look", lambda session: session.get(Approval, (RUN, "a-site")))
    assert (row.statement_body, row.statement_signature) == (body, b"\x00\\x27'\xff")
    assert db.read("site", lambda session: session.get(Site, "a-site")).signing_spki == b""


def test_documents_keep_their_kinds_and_none_is_null(db: Database) -> None:
    db.run_tx("run", add_run)
    payload: dict[str, object] = {
        "n": 2**53,
        "f": 0.1,
        "s": "ä'\"%s:x",
        "none": None,
        "list": [1, [2, None]],
        "t": True,
    }
    db.run_tx("effect", lambda session: add_effect(session, RUN, kind="fold-round", payload=payload, now=NOW))
    entry = db.read("look", lambda session: session.scalars(select(OutboxEntry)).one())
    assert entry.payload == payload

    def add_exchange(session: Session) -> None:
        session.add(
            Round(
                run_id=RUN,
                round_index=0,
                round_attempt=0,
                kind="train",
                state="EXCHANGING",
                manifest_body=b"",
                manifest_signature=b"",
                opened_at=NOW,
                deadline_at=NOW,
            )
        )
        session.flush()
        session.add(
            Exchange(
                run_id=RUN,
                round_index=0,
                round_attempt=0,
                exchange_index=0,
                exchange_attempt=0,
                state="ADVERTISING",
                invited=["b", "a"],
                arrived=[],
                opened_at=NOW,
                phase_deadline_at=NOW,
            )
        )

    db.run_tx("exchange", add_exchange)
    unfrozen = db.read("null", lambda session: session.scalars(select(Exchange).where(Exchange.u1.is_(None))).all())
    assert [(row.invited, row.arrived, row.u1) for row in unfrozen] == [(["b", "a"], [], None)]


def test_keys_that_the_database_counts_rise(db: Database) -> None:
    db.run_tx("run", add_run)
    for number in range(3):
        db.run_tx(
            "event", lambda session, number=number: append_event(session, RUN, kind=f"k{number}", payload={}, now=NOW)
        )
    rows = db.read("look", lambda session: session.scalars(select(Event).order_by(Event.id)).all())
    assert [row.kind for row in rows] == ["k0", "k1", "k2"]
    assert rows[0].id < rows[1].id < rows[2].id


def test_large_counts_are_kept(db: Database) -> None:
    def write(session: Session) -> None:
        add_run(session)
        session.flush()
        row = session.get(Round, (RUN, 0, 0))
        assert row is None
        entry = Event(run_id=RUN, kind="k", payload={}, created_at=NOW, consumed_at=None, id=2**40)
        session.add(entry)

    db.run_tx("large", write)
    assert db.read("look", lambda session: session.get(Event, 2**40)).kind == "k"
