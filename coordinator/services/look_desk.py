"""Whoever asks while a look at the database is on its way is answered by the next one, together with all others.

A bell wakes many sites at once, and each asks what it should do now. The rows that answer one of them answer all: so
they are read once for all, and a phase of a round costs a few looks whatever the number of sites.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog
from sqlalchemy.orm import Session

from coordinator.db.tx import Database
from fl_protocol.errors import WardroundError

_log = structlog.get_logger("coordinator.services")

Q = TypeVar("Q")
A = TypeVar("A")

_LARGEST_LOOK = 256
"""So that the first of very many is not kept waiting for the answers of all the others."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Look(Generic[Q, A]):
    """One look: who asks in it, until it begins, and what came of it."""

    questions: list[Q] = field(default_factory=list)
    task: asyncio.Task[Sequence[A | Exception]] | None = None


class LookDesk(Generic[Q, A]):
    """Gathers questions and answers them together. Used in the event loop's thread."""

    def __init__(self, db: Database, name: str) -> None:
        """Take the database, and how the look is called in the log."""
        self._db = db
        self._name = name
        self._gathering: _Look[Q, A] | None = None
        self._latest: _Look[Q, A] | None = None

    async def ask(self, question: Q, look: Callable[[Session, Sequence[Q]], Sequence[A | Exception]]) -> A:
        """The answer, out of a look that begins after this call.

        Args:
            question: one.
            look: one answer a question, in their order, or what is to be raised to whoever asked it; it writes nothing.

        Raises:
            Exception: what ``look`` returned for this question, or raised for all.
        """
        gathering = self._gathering
        if gathering is None or len(gathering.questions) >= _LARGEST_LOOK:
            gathering = self._gathering = _Look()
            gathering.task = asyncio.create_task(self._look(gathering, self._latest, look), name=self._name)
            gathering.task.add_done_callback(_hear_failure)
            self._latest = gathering
        number = len(gathering.questions)
        gathering.questions.append(question)
        assert gathering.task is not None, "it was given one above, or when it was made"
        # Whoever goes away takes nobody else's answer along.
        answer = (await asyncio.shield(gathering.task))[number]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _look(
        self,
        gathering: _Look[Q, A],
        before: _Look[Q, A] | None,
        look: Callable[[Session, Sequence[Q]], Sequence[A | Exception]],
    ) -> Sequence[A | Exception]:
        if before is not None and before.task is not None and not before.task.done():
            await asyncio.wait([before.task])
        if self._gathering is gathering:
            # From here on a question belongs to the next look: this one has begun.
            self._gathering = None
        questions = tuple(gathering.questions)
        try:
            return await self._read(questions, look)
        except WardroundError:
            # The database's own failure is everybody's.
            raise
        except Exception:
            if len(questions) == 1:
                raise
            _log.exception("look_failed", look=self._name, n_questions=len(questions))
        # Each alone, so that nobody goes without an answer for another's sake.
        return [await self._read_alone(question, look) for question in questions]

    async def _read(
        self, questions: Sequence[Q], look: Callable[[Session, Sequence[Q]], Sequence[A | Exception]]
    ) -> Sequence[A | Exception]:
        return await self._db.read_async(self._name, lambda session: look(session, questions))

    async def _read_alone(
        self, question: Q, look: Callable[[Session, Sequence[Q]], Sequence[A | Exception]]
    ) -> A | Exception:
        try:
            return (await self._read((question,), look))[0]
        except Exception as error:  # noqa: BLE001 # raised again in the one who asked
            return error


def _hear_failure(task: asyncio.Task[Sequence[A | Exception]]) -> None:
    # Asked for, so that asyncio does not call it forgotten where everybody who asked has gone away.
    if not task.cancelled():
        task.exception()
