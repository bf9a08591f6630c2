"""One writer at a time for SQLite, and one COMMIT for all that came meanwhile.

SQLite has one write lock and lets who waits for it sleep, up to a tenth of a second at a time; and each COMMIT waits
for the disk. Here the threads of one process queue in order instead: the first of them leads, runs everything that
waits, each in a savepoint of its own, and commits once for all. The outcome is that of running them one after the
other; nobody hears of success before the COMMIT, and one that fails takes only itself back.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

T = TypeVar("T")

_LARGEST_BATCH = 64
"""Enough that a round's phase of many sites is one COMMIT or a few; few enough that nobody waits for long."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Job(Generic[T]):
    """A transaction that waits. Invariant: once ``is_over`` is set, it has a result or an error, or is to lead."""

    fn: Callable[[Session], T]
    is_over: threading.Event = field(default_factory=threading.Event)
    is_leader: bool = False
    result: T | None = None
    error: BaseException | None = None


class _WholeBatchLostError(Exception):
    """The database itself failed inside a batch, and may have taken back more than one savepoint."""


class GroupCommit:
    """Runs write transactions of one process. Safe in many threads."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: of SQLite; its connections begin with the write lock."""
        self._engine = engine
        self._mutex = threading.Lock()
        self._waiting: list[_Job[object]] = []
        self._is_led = False

    def run(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in a transaction that is committed on return; what it raises is raised here, and it is undone."""
        job: _Job[T] = _Job(fn=fn)
        with self._mutex:
            self._waiting.append(cast("_Job[object]", job))
            job.is_leader = not self._is_led
            self._is_led = True
        if not job.is_leader:
            job.is_over.wait()
        if job.is_leader:
            self._lead()
        if job.error is not None:
            raise job.error
        return cast("T", job.result)

    def _lead(self) -> None:
        """Run what waits, this thread's own first, then let the next one lead."""
        with self._mutex:
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
        try:
            self._run_batch(batch)
        finally:
            with self._mutex:
                self._is_led = bool(self._waiting)
                following = self._waiting[0] if self._waiting else None
            for job in batch:
                job.is_over.set()
            if following is not None:
                following.is_leader = True
                following.is_over.set()

    def _run_batch(self, batch: list[_Job[object]]) -> None:
        if len(batch) > 1:
            try:
                self._run_together(batch)
            except _WholeBatchLostError:
                # fn may run again: each for itself now, so that each fails for its own reason only.
                for job in batch:
                    job.result, job.error = None, None
            else:
                return
        for job in batch:
            self._run_alone(job)

    def _run_alone(self, job: _Job[object]) -> None:
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                job.result = job.fn(session)
        except BaseException as error:  # noqa: BLE001 # raised again in the thread whose transaction it is
            job.error = error

    def _run_together(self, batch: list[_Job[object]]) -> None:
        """All in one transaction.

        Raises:
            _WholeBatchLostError: the database failed; nothing of the batch is committed.
        """
        try:
            # One session: a round that eight sites speak about is read once. The write lock keeps what it holds true.
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                for job in batch:
                    _run_in_savepoint(job, session)
        except (DBAPIError, sqlite3.Error) as error:
            raise _WholeBatchLostError from error


def _run_in_savepoint(job: _Job[object], session: Session) -> None:
    """Run one of a batch. What it changed and did not keep, also in the session's memory, is as before afterwards."""
    try:
        with session.begin_nested():
            job.result = job.fn(session)
    except IntegrityError as error:
        job.error = error
    except (DBAPIError, sqlite3.Error):
        # A full disk, for one, may end the whole transaction and not the savepoint alone.
        raise
    except BaseException as error:  # noqa: BLE001 # raised again in the thread whose transaction it is
        job.error = error
