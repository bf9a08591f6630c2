"""Leases: one holder at a time, whatever happens to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Lease, Run
from coordinator.db.tx import Database
from coordinator.driver.leases import claim_lease, has_lapsed, holds_lease, release_lease
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.rows import NOW, RUN, add_run
from tests.contract.database.test_transactions import in_threads

TEN = timedelta(seconds=10)


def claim(db: Database, holder: str, after_s: float) -> bool:
    at = NOW + timedelta(seconds=after_s)
    return db.run_tx("claim", lambda session: claim_lease(session, RUN, holder=holder, now=at, duration=TEN))


def holds(db: Database, holder: str, after_s: float) -> bool:
    at = NOW + timedelta(seconds=after_s)
    return db.read("holds", lambda session: holds_lease(session, RUN, holder=holder, now=at))


def test_lease_belongs_to_one_holder_until_it_runs_out(db: Database) -> None:
    assert claim(db, "one", 0)
    assert not claim(db, "two", 9)
    assert claim(db, "one", 6)
    assert not claim(db, "two", 15)
    assert claim(db, "two", 16)
    assert not claim(db, "one", 17)
    assert holds(db, "two", 17)
    assert not holds(db, "two", 26)


def test_lease_given_back_is_free_and_another_holders_is_left_alone(db: Database) -> None:
    claim(db, "one", 0)
    db.run_tx("release", lambda session: release_lease(session, RUN, holder="two"))
    assert holds(db, "one", 0)
    db.run_tx("release", lambda session: release_lease(session, RUN, holder="one"))
    assert claim(db, "two", 0)


def test_lease_has_lapsed_once_nobody_drove_for_longer_than_a_take_over_takes(db: Database) -> None:
    def has_it(holder: str, after_s: float) -> bool:
        at = NOW + timedelta(seconds=after_s)
        return db.read("lapsed", lambda session: has_lapsed(session, RUN, holder=holder, now=at, duration=TEN))

    assert has_it("two", 0)
    claim(db, "one", 0)
    # It runs out after ten seconds, and has another ten for somebody to come.
    assert [has_it("two", after_s) for after_s in (9, 20, 20.1)] == [False, False, True]
    assert not has_it("one", 1000)
    db.run_tx("release", lambda session: release_lease(session, RUN, holder="one"))
    assert has_it("two", 0)


def test_quiet_renewals_write_nothing_until_half_of_the_time_is_over(db: Database) -> None:
    claim(db, "one", 0)
    for after_s in (1, 3, 5):
        assert claim(db, "one", after_s)
        assert db.read("look", lambda session: session.scalars(select(Lease.expires_at)).one()) == NOW + TEN
    assert claim(db, "one", 5.1)
    expected = NOW + timedelta(seconds=15.1)
    assert db.read("look", lambda session: session.scalars(select(Lease.expires_at)).one()) == expected


@pytest.mark.parametrize("is_there", [False, True], ids=["never held", "run out"])
def test_of_many_who_claim_at_once_one_holds_it(databases: DatabasesOfTest, url: str, is_there: bool) -> None:
    replicas = [databases.open(url) for _ in range(3)]
    if is_there:
        claim(replicas[0], "the-dead-one", -100)
    together = threading.Barrier(6)
    answers: dict[str, bool] = {}

    def work(number: int) -> Callable[[], None]:
        def claim_it() -> None:
            together.wait()
            answers[f"driver-{number}"] = claim(replicas[number % 3], f"driver-{number}", 0)

        return claim_it

    in_threads(*(work(number) for number in range(6)))
    winners = [holder for holder, has in answers.items() if has]
    assert len(winners) == 1
    assert holds(replicas[0], winners[0], 1)


def test_driver_asleep_past_its_lease_writes_nothing(databases: DatabasesOfTest, url: str) -> None:
    # The sleeper looked at its lease and falls asleep inside its transaction; another takes over and steps the run.
    sleeper, other = databases.open(url), databases.open(url)
    sleeper.run_tx("run", add_run)
    assert claim(sleeper, "sleeper", 0)
    tries = []

    def step(session: Session, holder: str, after_s: float) -> bool:
        at = NOW + timedelta(seconds=after_s)
        if not claim_lease(session, RUN, holder=holder, now=at, duration=TEN):
            return False
        run = session.get(Run, RUN)
        run.next_round_index += 1
        run.reason = holder
        return True

    def sleepers_step(session: Session) -> bool:
        tries.append(1)
        # The clock was read before the sleep: by it, the lease is well alive.
        is_mine = claim_lease(session, RUN, holder="sleeper", now=NOW + timedelta(seconds=1), duration=TEN)
        if len(tries) == 1 and databases.server is not None:
            assert other.run_tx("takes-over", lambda session: step(session, "other", 20))
        if not is_mine:
            return False
        run = session.get(Run, RUN)
        run.next_round_index += 1
        run.reason = "sleeper"
        return True

    if databases.server is None:
        # SQLite admits nobody while the sleeper is inside; it can only sleep before.
        assert other.run_tx("takes-over", lambda session: step(session, "other", 20))
    assert sleeper.run_tx("sleeps", sleepers_step) is False
    assert len(tries) == (1 if databases.server is None else 2)
    run = other.read("look", lambda session: session.get(Run, RUN))
    assert (run.next_round_index, run.reason) == (1, "other")


@pytest.mark.system
def test_lease_that_another_is_taking_is_skipped_and_not_waited_for(postgres_databases: DatabasesOfTest) -> None:
    url = postgres_databases.new_url()
    slow, quick = postgres_databases.open(url), postgres_databases.open(url)
    claim(slow, "the-dead-one", -100)
    answers: list[bool] = []

    def take(session: Session) -> bool:
        has = claim_lease(session, RUN, holder="slow", now=NOW, duration=TEN)
        session.flush()
        thread = threading.Thread(target=lambda: answers.append(claim(quick, "quick", 0)))
        thread.start()
        # It comes back while this transaction, which has the row, is still open.
        thread.join(timeout=20)
        assert not thread.is_alive()
        return has

    assert slow.run_tx("take", take) is True
    assert answers == [False]
    assert holds(quick, "slow", 1)
