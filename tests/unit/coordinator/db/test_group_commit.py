"""Transactions committed together are as if each had been alone: one that fails leaves nothing in the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator.db.engines import engine_from_url
from coordinator.db.group_commit import GroupCommit
from coordinator.db.models import Base, Lease

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WAIT_S = 20


class RefusedError(Exception):
    """What a transaction of these tests raises after it has changed something."""


@pytest.fixture
def commits(tmp_path: Path) -> Iterator[GroupCommit]:
    engine = engine_from_url(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(engine)
    made = GroupCommit(engine)
    made.run(lambda session: session.add(Lease(name="run:a", holder="before", expires_at=NOW)))
    yield made
    engine.dispose()


def together(commits: GroupCommit, *fns: Callable[[Session], object]) -> list[Future[object]]:
    """Run these in one batch, in their order: a transaction before them holds the lead until all of them wait."""
    may_end, begun = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        del session
        begun.set()
        assert may_end.wait(WAIT_S)

    with ThreadPoolExecutor(max_workers=len(fns) + 1) as pool:
        first = pool.submit(commits.run, hold)
        assert begun.wait(WAIT_S)
        results: list[Future[object]] = []
        for number, fn in enumerate(fns, start=1):
            results.append(pool.submit(commits.run, fn))
            while len(commits._waiting) < number:  # to know that it waits there is no other way
                threading.Event().wait(0.001)
        may_end.set()
        first.result(WAIT_S)
    return results


def holder(session: Session) -> str:
    lease = session.get(Lease, "run:a")
    assert lease is not None
    return lease.holder


def change_and_raise(session: Session, *, flush: bool) -> None:
    lease = session.get(Lease, "run:a")
    assert lease is not None
    lease.holder = "never"
    session.add(Lease(name="run:never", holder="never", expires_at=NOW))
    if flush:
        session.flush()
    raise RefusedError


@pytest.mark.parametrize("flush", [False, True], ids=["in memory only", "in the database"])
def test_change_of_a_transaction_that_failed_is_seen_by_none_of_its_batch(commits: GroupCommit, *, flush: bool) -> None:
    seen = together(
        commits,
        holder,
        lambda session: change_and_raise(session, flush=flush),
        lambda session: (holder(session), session.get(Lease, "run:never")),
    )
    assert seen[0].result() == "before"
    with pytest.raises(RefusedError):
        seen[1].result()
    assert seen[2].result() == ("before", None)
    assert commits.run(holder) == "before"
    assert commits.run(lambda session: session.get(Lease, "run:never")) is None


def test_change_that_stands_is_seen_by_the_next_of_its_batch_and_survives_a_failure_behind_it(
    commits: GroupCommit,
) -> None:
    def take(session: Session) -> None:
        lease = session.get(Lease, "run:a")
        assert lease is not None
        lease.holder = "taken"

    seen = together(commits, take, lambda session: change_and_raise(session, flush=True), holder)
    assert seen[2].result() == "taken"
    assert commits.run(holder) == "taken"


def test_second_row_of_one_key_fails_alone(commits: GroupCommit) -> None:
    def add(session: Session) -> None:
        session.add(Lease(name="run:b", holder="b", expires_at=NOW))

    seen = together(commits, add, add, holder)
    assert [future.exception() is None for future in seen] == [True, False, True]
    assert isinstance(seen[1].exception(), IntegrityError)
    assert commits.run(lambda session: session.get(Lease, "run:b")) is not None
