"""Questions that come at once are answered by one look, each by its own answer, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from coordinator.db.tx import Database
from coordinator.errors import DatabaseUnavailableError, SiteNotActiveError
from coordinator.services.look_desk import LookDesk


class Looks:
    """Answers twice the number, and keeps who was asked together."""

    def __init__(self) -> None:
        self.together: list[tuple[int, ...]] = []
        self.refused: frozenset[int] = frozenset()
        self.broken: frozenset[int] = frozenset()

    def __call__(self, session: Session, questions: Sequence[int]) -> list[int | Exception]:
        del session
        self.together.append(tuple(questions))
        if self.broken & set(questions):
            message = "a defect"
            raise RuntimeError(message)
        return [
            SiteNotActiveError("may not act", site_id=str(number)) if number in self.refused else 2 * number
            for number in questions
        ]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """A database that nobody reads."""
    database = Database.from_path(tmp_path / "looks.db")
    yield database
    database.dispose()


async def test_ask_by_many_at_once_is_one_look_and_each_has_its_own_answer(db: Database) -> None:
    looks, desk = Looks(), LookDesk[int, int](db, "look")
    answers = await asyncio.gather(*(desk.ask(number, looks) for number in range(20)))
    assert answers == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38]
    assert looks.together == [tuple(range(20))]


async def test_ask_while_a_look_is_under_way_is_answered_by_a_look_that_begins_later(db: Database) -> None:
    """What a caller saw before it asked, the bell's count say, is older than what its answer is made from."""
    looks, desk = Looks(), LookDesk[int, int](db, "look")
    began, loop = asyncio.Event(), asyncio.get_running_loop()
    may_end = asyncio.Event()

    def slow(session: Session, questions: Sequence[int]) -> list[int | Exception]:
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(10)
        return looks(session, questions)

    first = asyncio.create_task(desk.ask(1, slow))
    await began.wait()
    later = [asyncio.create_task(desk.ask(number, looks)) for number in (2, 3)]
    await asyncio.sleep(0)
    may_end.set()
    assert await first == 2
    assert [await task for task in later] == [4, 6]
    assert looks.together == [(1,), (2, 3)]


async def test_refusal_of_one_is_raised_to_it_alone(db: Database) -> None:
    looks, desk = Looks(), LookDesk[int, int](db, "look")
    looks.refused = frozenset({1})
    answers = await asyncio.gather(*(desk.ask(number, looks) for number in range(3)), return_exceptions=True)
    assert (answers[0], answers[2]) == (0, 4)
    assert isinstance(answers[1], SiteNotActiveError)


async def test_defect_met_by_one_question_leaves_the_others_their_answers(db: Database) -> None:
    looks, desk = Looks(), LookDesk[int, int](db, "look")
    looks.broken = frozenset({1})
    answers = await asyncio.gather(*(desk.ask(number, looks) for number in range(3)), return_exceptions=True)
    assert (answers[0], answers[2]) == (0, 4)
    assert isinstance(answers[1], RuntimeError)


async def test_asker_that_goes_away_takes_no_other_answer_along(db: Database) -> None:
    looks, desk = Looks(), LookDesk[int, int](db, "look")
    gone, stays = asyncio.create_task(desk.ask(1, looks)), asyncio.create_task(desk.ask(2, looks))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 4
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_database_that_is_away_is_told_to_everybody_once(db: Database) -> None:
    desk = LookDesk[int, int](db, "look")
    n_looks = 0

    def away(session: Session, questions: Sequence[int]) -> list[int | Exception]:
        nonlocal n_looks
        del session, questions
        n_looks += 1
        raise DatabaseUnavailableError("away", tx="look")

    answers = await asyncio.gather(*(desk.ask(number, away) for number in range(5)), return_exceptions=True)
    assert all(isinstance(answer, DatabaseUnavailableError) for answer in answers)
    assert n_looks == 1


def test_desk_serves_one_event_loop_after_another(tmp_path: Path) -> None:
    """A process has one loop; the tests' and the simulation's worlds have several, over one context."""
    database = Database.from_path(tmp_path / "looks.db")
    looks, desk = Looks(), LookDesk[int, int](database, "look")
    try:
        answers = [asyncio.run(_ask(desk, looks, number)) for number in (1, 2)]
    finally:
        database.dispose()
    assert answers == [2, 4]


async def _ask(desk: LookDesk[int, int], looks: Looks, number: int) -> int:
    return await desk.ask(number, looks)
