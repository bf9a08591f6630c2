"""Events are read in order; effects are performed at least once and completed exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import OutboxEntry
from coordinator.db.outbox import (
    add_effect,
    append_event,
    due_effects,
    has_open_effects,
    note_effect_failure,
    pending_events,
    take_open_effect,
)
from coordinator.db.tx import Database
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.rows import NOW, RUN, add_run
from tests.contract.database.test_transactions import in_threads


def test_events_are_read_in_order_until_consumed(db: Database) -> None:
    db.run_tx("run", add_run)
    for number in range(3):
        db.run_tx(
            "event", lambda session, number=number: append_event(session, RUN, kind=f"k{number}", payload={}, now=NOW)
        )

    def consume_first(session: Session) -> list[str]:
        rows = pending_events(session, RUN)
        kinds = [row.kind for row in rows]
        rows[0].consumed_at = NOW
        return kinds

    assert db.run_tx("consume", consume_first) == ["k0", "k1", "k2"]
    assert db.run_tx("consume", consume_first) == ["k1", "k2"]


def due(session: Session, now: datetime = NOW) -> list[int]:
    return [row.id for row in due_effects(session, RUN, now=now)]


def test_effect_is_due_until_it_is_completed_and_waits_after_a_failure(db: Database) -> None:
    db.run_tx("run", add_run)
    db.run_tx("effect", lambda session: add_effect(session, RUN, kind="fold-round", payload={"a": [1]}, now=NOW))
    (effect_id,) = db.read("due", due)
    assert db.read("due-again", due) == [effect_id]
    attempts = db.run_tx(
        "fail",
        lambda session: note_effect_failure(session, effect_id, error="e", now=NOW, pause=timedelta(seconds=5)),
    )
    assert attempts == 1
    assert db.read("due", due) == []
    assert db.read("due", lambda session: due(session, NOW + timedelta(seconds=5))) == [effect_id]
    assert db.read("open", lambda session: has_open_effects(session, RUN))
    assert [db.run_tx("take", lambda session: take_open_effect(session, effect_id, now=NOW)) for _ in range(2)] == [
        True,
        False,
    ]
    assert not db.read("open", lambda session: has_open_effects(session, RUN))
    assert (
        db.run_tx(
            "fail",
            lambda session: note_effect_failure(session, effect_id, error="e", now=NOW, pause=timedelta(seconds=5)),
        )
        == 0
    )


def test_two_drivers_that_complete_one_effect_at_once_complete_it_once(databases: DatabasesOfTest, url: str) -> None:
    replicas = [databases.open(url), databases.open(url)]
    replicas[0].run_tx("run", add_run)
    for number in range(10):
        replicas[0].run_tx("effect", lambda session: add_effect(session, RUN, kind="k", payload={}, now=NOW))
        (effect_id,) = replicas[0].read("due", due)
        together = threading.Barrier(4)
        answers: list[bool] = []

        def complete(session: Session, effect_id: int = effect_id) -> bool:
            if not take_open_effect(session, effect_id, now=NOW):
                return False
            append_event(session, RUN, kind="done", payload={}, now=NOW)
            return True

        def work(
            replica: Database,
            together: threading.Barrier = together,
            answers: list[bool] = answers,
            complete: Callable[[Session], bool] = complete,
        ) -> None:
            together.wait()
            answers.append(replica.run_tx("complete", complete))

        in_threads(*(lambda replica=replica: work(replica) for replica in (*replicas, *replicas)))
        assert sorted(answers) == [False, False, False, True]
        assert len(replicas[1].read("events", lambda session: pending_events(session, RUN))) == number + 1
    done = replicas[1].read("rows", lambda session: session.scalars(select(OutboxEntry.done_at)).all())
    assert done == [NOW] * 10
