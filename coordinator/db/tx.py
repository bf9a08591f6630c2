"""Transactions: ``run_tx("name", fn)`` is the only way to write. ``fn`` may run again, so it has no side effects.

SQLite (WAL) takes the write lock at the start (BEGIN IMMEDIATE), so that a transaction that reads and then writes
never finds out at its end that it read something old. PostgreSQL runs the same code at SERIALIZABLE: a first try goes
beside all others; where it lost to another it is run again alone, behind a lock that is taken before its snapshot, and
then nothing can be in its way. Blobs are written before a transaction, effects are performed after it.

A connection that breaks is replaced and the transaction run again, for as long as ``patience_s``; where the break came
during COMMIT, ``commit_markers`` tells first whether it was committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction

from coordinator.db.commit_markers import leave_marker, new_marker
from coordinator.db.engines import engine_from_url
from coordinator.db.faults import Fault, fault_of, said_by
from coordinator.db.group_commit import GroupCommit
from coordinator.db.notes import NobodyWatches, TransactionWatch, noting
from coordinator.errors import DatabaseBusyError, DatabaseFullError, DatabaseUnavailableError, DatabaseUnwritableError

T = TypeVar("T")

_MAX_TRIES = 6
_MAX_TRIES_OF_TAKEN = 3
PATIENCE_S = 10.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_HAS_WRITTEN = "wardround-has-written"
_LINK_FAULTS = frozenset({Fault.LOST, Fault.TURNED_AWAY})

_log = structlog.get_logger("coordinator.db")


class _WritingSession(Session):
    """Remembers whether it wrote, so that a transaction that only looked leaves no marker."""


def _note_flush(session: Session, flushing: UOWTransaction) -> None:
    del flushing
    session.info[_HAS_WRITTEN] = True


def _note_statement(state: ORMExecuteState) -> None:
    if not state.is_select:
        state.session.info[_HAS_WRITTEN] = True


event.listen(_WritingSession, "after_flush", _note_flush)
event.listen(_WritingSession, "do_orm_execute", _note_statement)


class _CommitUnansweredError(Exception):
    """The connection broke during COMMIT."""


class _Patience:
    """How long a call goes on asking a database that does not answer."""

    def __init__(self, name: str, patience_s: float) -> None:
        self._name, self._left_s = name, patience_s
        self._pause_s = _FIRST_PAUSE_S

    def wait(self, error: BaseException, *, is_outcome_known: bool = True) -> None:
        """Wait before the next try.

        Raises:
            DatabaseUnavailableError: it has been long enough, or the server turned us away.
        """
        said = said_by(error)
        if self._left_s <= 0 or fault_of(error) is Fault.TURNED_AWAY:
            message = "the database does not answer; see that it runs and that database.url is right"
            raise DatabaseUnavailableError(
                message, tx=self._name, error=said, is_outcome_known=is_outcome_known
            ) from error
        _log.warning("database_unreachable", tx=self._name, error=said)
        time.sleep(min(self._pause_s, self._left_s))
        self._left_s -= self._pause_s
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)


def _full(name: str) -> DatabaseFullError:
    return DatabaseFullError("there is no room on the database's disk; free some, and all goes on", tx=name)


def _unwritable(name: str, error: BaseException) -> DatabaseUnwritableError:
    message = "the database cannot be written or read as it should; nothing happens until it is mended"
    return DatabaseUnwritableError(message, tx=name, error=said_by(error))


class Database:
    """Runs functions inside transactions. One instance a process; safe in many threads."""

    def __init__(self, engine: Engine, *, patience_s: float = PATIENCE_S) -> None:
        """Take an engine of ``engine_from_url``.

        Args:
            engine: of ``engine_from_url``.
            patience_s: how long a call goes on asking a server that does not answer.
        """
        self._engine = engine
        self._reader = engine.execution_options(wardround_read_only=True)
        self._patience_s = patience_s
        self._is_server = engine.dialect.name != "sqlite"
        self._file_writer = None if self._is_server else GroupCommit(engine)
        self._watch: TransactionWatch = NobodyWatches()

    def watch(self, watch: TransactionWatch) -> None:
        """Tell ``watch`` of each write transaction from now on, after its end."""
        self._watch = watch

    @classmethod
    def from_path(cls, path: Path) -> Database:
        """The database in one SQLite file."""
        return cls(engine_from_url(f"sqlite:///{path}"))

    @property
    def engine(self) -> Engine:
        """For migrations."""
        return self._engine

    @property
    def is_server(self) -> bool:
        """Whether it is a server that several machines may use, and that can tell them of each other's commits."""
        return self._is_server

    def run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one write transaction, again when the database could not serialise it or was lost.

        Args:
            name: a constant, for the log.
            fn: reads and writes through its session; no side effects. What it returns must not need the session.

        Returns:
            What ``fn`` returned, after the commit.

        Raises:
            DatabaseBusyError: the bounded tries are used up. Nothing was written.
            DatabaseFullError: there is no room on the database's disk. Nothing was written.
            DatabaseUnwritableError: the database is read-only, damaged, or lacks a table. Nothing was written.
            DatabaseUnavailableError: the database does not answer. Nothing was written, unless the fact
                ``is_outcome_known`` is false: then whoever asked asks again, and is answered as the first time.
        """
        notes: list[object] = []
        try:
            result = self._run_tx(name, noting(fn, notes))
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            # A full, an unwritable and a damaged one are kinds of the first.
            self._watch.failed(error.code)
            raise
        self._watch.committed(notes)
        return result

    def _run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        """``run_tx``, without the watch. Raises as it does."""
        patience = _Patience(name, self._patience_s)
        tries = 0
        while tries < _MAX_TRIES:
            kept: list[T] = []
            marker = new_marker()
            try:
                return self._try(fn, marker=marker, is_alone=tries > 0, kept=kept)
            except _CommitUnansweredError as unanswered:
                error = unanswered.__cause__ or unanswered
                if self._was_committed(marker, patience, error):
                    return kept[0]
            except Exception as error:
                fault = fault_of(error)
                if fault in _LINK_FAULTS:
                    patience.wait(error)
                    continue
                tries += 1
                if fault is Fault.FULL:
                    raise _full(name) from error
                if fault is Fault.UNWRITABLE:
                    raise _unwritable(name, error) from error
                if fault is Fault.NO_CONNECTION_FREE:
                    raise DatabaseBusyError("all connections are in use; try again", tx=name) from error
                is_last_of_taken = fault is Fault.TAKEN and tries >= _MAX_TRIES_OF_TAKEN
                if fault is Fault.OTHER or is_last_of_taken or (fault is Fault.TAKEN and not self._is_server):
                    raise
                _log.warning("transaction_retried", tx=name, attempt=tries, fault=fault.value)
                time.sleep(0.01 * 2**tries)
        raise DatabaseBusyError("the database is busy; try again", tx=name, attempts=_MAX_TRIES)

    def read(self, name: str, fn: Callable[[Session], T], *, patience_s: float | None = None) -> T:
        """Run ``fn`` over one consistent view of the database; it writes nothing.

        Raises:
            DatabaseBusyError, DatabaseUnavailableError: as in ``run_tx``.
        """
        patience = _Patience(name, self._patience_s if patience_s is None else patience_s)
        while True:
            try:
                return self._look(fn)
            except Exception as error:
                fault = fault_of(error)
                if fault is Fault.FULL:
                    raise _full(name) from error
                if fault is Fault.UNWRITABLE:
                    raise _unwritable(name, error) from error
                if fault is Fault.NO_CONNECTION_FREE:
                    raise DatabaseBusyError("all connections are in use; try again", tx=name) from error
                if fault not in _LINK_FAULTS:
                    raise
                patience.wait(error)

    async def run_tx_async(self, name: str, fn: Callable[[Session], T]) -> T:
        """``run_tx`` in a thread."""
        return await asyncio.to_thread(self.run_tx, name, fn)

    async def read_async(self, name: str, fn: Callable[[Session], T]) -> T:
        """``read`` in a thread."""
        return await asyncio.to_thread(self.read, name, fn)

    def server_time(self) -> datetime | None:
        """What the database server's clock says; None where the database is a file and its clock is ours."""
        if not self._is_server:
            return None

        def ask(session: Session) -> datetime:
            said = session.scalar(text("SELECT clock_timestamp()"))
            assert isinstance(said, datetime)
            return said.astimezone(UTC)

        return self.read("server-time", ask)

    def drop_log(self) -> bool:
        """SQLite: write the log back and empty it, so that no older content stands in it; False while others read.

        Other databases look after theirs themselves, and answer True.
        """
        if self._is_server:
            return True
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            is_busy, *_ = cursor.fetchone() or (1,)
            cursor.close()
            return not is_busy
        finally:
            connection.close()

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _try(self, fn: Callable[[Session], T], *, marker: str, is_alone: bool, kept: list[T]) -> T:
        if self._file_writer is not None:
            return self._file_writer.run(fn)
        with _WritingSession(self._engine, expire_on_commit=False) as session:
            if self._is_server:
                # LOCK TABLE takes no snapshot: whoever waits here sees, when it goes on, what the others committed.
                mode = "EXCLUSIVE" if is_alone else "ROW EXCLUSIVE"
                session.connection().exec_driver_sql(f"LOCK TABLE commit_markers IN {mode} MODE")
            result = fn(session)
            kept.append(result)
            session.flush()
            is_marked = self._is_server and _HAS_WRITTEN in session.info
            if is_marked:
                leave_marker(session.connection(), marker)
            # Everything is in the database's hands: what fn returned keeps what it holds, whatever comes of COMMIT.
            session.expunge_all()
            try:
                session.commit()
            except Exception as error:
                if is_marked and fault_of(error) is Fault.LOST:
                    raise _CommitUnansweredError from error
                raise
            return result

    def _look(self, fn: Callable[[Session], T]) -> T:
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            if self._is_server:
                # One snapshot, and no part in the writers' conflicts.
                session.connection().exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            try:
                return fn(session)
            finally:
                # What fn returns keeps what it has loaded.
                session.expunge_all()
                session.rollback()

    def _was_committed(self, marker: str, patience: _Patience, error: BaseException) -> bool:
        while True:
            patience.wait(error, is_outcome_known=False)
            try:
                with self._engine.begin() as connection:
                    leave_marker(connection, marker)
            except Exception as failure:
                fault = fault_of(failure)
                if fault is Fault.TAKEN:
                    return True
                if fault not in _LINK_FAULTS and fault is not Fault.CONTENTION:
                    raise
                error = failure
            else:
                return False
