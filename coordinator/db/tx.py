"""Transactions: ``run_tx("name", fn)`` is the only way to write. ``fn`` may run again, so it has no side effects.

SQLite (WAL) takes the write lock at the start (BEGIN IMMEDIATE), so that a transaction that reads and then writes
never finds out at its end that it read something old. PostgreSQL runs the same code at SERIALIZABLE. Blobs are
written before a transaction, effects are performed after it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from coordinator.errors import DatabaseBusyError

T = TypeVar("T")

_MAX_TRIES = 6
_BUSY_TIMEOUT_MS = 5_000
_SERIALISATION_STATES = frozenset({"40001", "40P01"})

_log = structlog.get_logger("coordinator.db")


def engine_from_url(url: str) -> Engine:
    """An engine whose connections behave as this module promises.

    Args:
        url: an SQLAlchemy address, such as ``sqlite:////var/lib/wardround/coordinator.db``.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, isolation_level="SERIALIZABLE", pool_pre_ping=True)
    # More connections than threads: nobody waits for one while it holds the write lock.
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_size=8, max_overflow=120)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    del entry
    assert isinstance(connection, sqlite3.Connection)
    # The driver would otherwise begin a deferred transaction by itself, later than we say.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    deferred = connection.get_execution_options().get("wardround_read_only", False)
    connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")


class Database:
    """Runs functions inside transactions. One instance a process; safe in many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(wardround_read_only=True)

    @classmethod
    def from_path(cls, path: Path) -> Database:
        """The database in one SQLite file."""
        return cls(engine_from_url(f"sqlite:///{path}"))

    @property
    def engine(self) -> Engine:
        """For migrations."""
        return self._engine

    def run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one write transaction, again when the database could not serialise it.

        Args:
            name: a constant, for the log.
            fn: reads and writes through its session; no side effects. What it returns must not need the session.

        Returns:
            What ``fn`` returned, after the commit.

        Raises:
            DatabaseBusyError: the bounded tries are used up. Nothing was written.
        """
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                with Session(self._engine, expire_on_commit=False) as session, session.begin():
                    return fn(session)
            except DBAPIError as error:
                if not _may_be_tried_again(error):
                    raise
                _log.warning("transaction_retried", tx=name, attempt=attempt, error=type(error.orig).__name__)
                time.sleep(0.01 * 2**attempt)
        raise DatabaseBusyError("the database is busy; try again", tx=name, attempts=_MAX_TRIES)

    def read(self, name: str, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` over one consistent view of the database; it writes nothing."""
        del name
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            try:
                return fn(session)
            finally:
                # What fn returns keeps what it has loaded.
                session.expunge_all()
                session.rollback()

    async def run_tx_async(self, name: str, fn: Callable[[Session], T]) -> T:
        """``run_tx`` in a thread."""
        return await asyncio.to_thread(self.run_tx, name, fn)

    async def read_async(self, name: str, fn: Callable[[Session], T]) -> T:
        """``read`` in a thread."""
        return await asyncio.to_thread(self.read, name, fn)

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _may_be_tried_again(error: DBAPIError) -> bool:
    if isinstance(error, OperationalError) and isinstance(error.orig, sqlite3.OperationalError):
        text = str(error.orig)
        return "locked" in text or "busy" in text
    return getattr(error.orig, "sqlstate", None) in _SERIALISATION_STATES
