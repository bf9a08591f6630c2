"""The one way to write: ``run_tx`` gives a function a session inside one transaction; all it did is kept, or nothing.

The function may run again when another process holds the file, so it has no side effects of its own. A commit is on
disk when ``run_tx`` returns (WAL with ``synchronous=FULL``): a one-shot flag that was written survives a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from site_agent.db.errors import SiteDatabaseError, SiteDatabaseFullError, SiteDatabaseVersionError
from site_agent.db.models import SCHEMA_VERSION
from site_agent.db.upgrades import OLDEST_VERSION, expand_tables

ResultT = TypeVar("ResultT")

_BUSY_TIMEOUT_S = 15.0
_ATTEMPTS = 3
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


class SiteDb:
    """The open database of one site. Usable from any thread; each call has a connection of its own from the pool."""

    def __init__(self, engine: Engine) -> None:
        """Take an engine whose tables are there; ``open_site_db`` makes one."""
        self._engine = engine
        self._tell: Callable[[str | None], None] = _tell_nobody

    def watch_writes(self, tell: Callable[[str | None], None]) -> None:
        """Tell, after each writing transaction, the code of what stopped it, or None where it was kept.

        No record, no action: what cannot be recorded is not done, and whoever looks at the site must see why.
        """
        self._tell = tell

    def run_tx(self, name: str, fn: Callable[[Session], ResultT]) -> ResultT:
        """``_write``, and whoever watches is told how it went.

        Raises:
            SiteDatabaseError: nothing was written.
        """
        try:
            outcome = self._write(name, fn)
        except SiteDatabaseError as error:
            self._tell(error.code)
            raise
        self._tell(None)
        return outcome

    def _write(self, name: str, fn: Callable[[Session], ResultT]) -> ResultT:
        """Run ``fn`` in one writing transaction.

        Args:
            name: what the transaction does, for the error's facts.
            fn: reads and writes through the session; may run again; returns plain values, no rows.

        Raises:
            SiteDatabaseError: nothing was written.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with Session(self._engine, expire_on_commit=False) as session, session.begin():
                    return fn(session)
            except OperationalError as error:
                # The writer waits for the lock inside SQLite; after that long a wait, trying again is all that is left.
                if attempt == _ATTEMPTS or "locked" not in str(error.orig):
                    raise _database_error(name, error) from error
            except SQLAlchemyError as error:
                raise _database_error(name, error) from error
        message = "unreachable: the last attempt returns or raises"
        raise AssertionError(message)

    def run_read(self, name: str, fn: Callable[[Session], ResultT]) -> ResultT:
        """Run ``fn`` on one consistent snapshot; what it would write is rolled back. Told as in ``run_tx``.

        Raises:
            SiteDatabaseError: the file cannot be read.
        """
        try:
            return self._read(name, fn)
        except SiteDatabaseError as error:
            self._tell(error.code)
            raise

    def _read(self, name: str, fn: Callable[[Session], ResultT]) -> ResultT:
        try:
            with (
                self._engine.connect().execution_options(wardround_read=True) as connection,
                Session(connection, expire_on_commit=False) as session,
            ):
                try:
                    return fn(session)
                finally:
                    session.rollback()
        except SQLAlchemyError as error:
            raise _database_error(name, error) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _tell_nobody(code: str | None) -> None:
    """Nobody watches: a command, which shows its own error."""


def open_site_db(path: Path) -> SiteDb:
    """Open the site's database; make the file (mode 0600) and its tables when it is new, add to them when it is older.

    Raises:
        SiteDatabaseVersionError: the file belongs to a later version, or to one that was never released.
        SiteDatabaseError: it cannot be opened or is no SQLite file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        message = "the site's database cannot be opened; check that this user may write to the state folder"
        raise SiteDatabaseError(message, reason=error.strerror) from error
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _configure_connection)
    event.listen(engine, "begin", _begin_transaction)
    try:
        with engine.begin() as connection:
            _ensure_tables(connection)
    except SQLAlchemyError as error:
        engine.dispose()
        raise _database_error("open", error) from error
    except SiteDatabaseError:
        engine.dispose()
        raise
    return SiteDb(engine)


def _ensure_tables(connection: Connection) -> None:
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if version == SCHEMA_VERSION:
        return
    if version == 0 or OLDEST_VERSION <= version < SCHEMA_VERSION:
        expand_tables(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    else:
        message = (
            "the site's database belongs to another version of Wardround; install that version, or restore a backup"
        )
        raise SiteDatabaseVersionError(message, found=version, expected=SCHEMA_VERSION)


def _configure_connection(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # The driver must not open transactions by itself: it would begin them as readers, and a reader that turns into a
    # writer can lose to another writer halfway through.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin_transaction(connection: Connection) -> None:
    is_read = connection.get_execution_options().get("wardround_read", False)
    connection.exec_driver_sql("BEGIN" if is_read else "BEGIN IMMEDIATE")


def _database_error(name: str, error: SQLAlchemyError) -> SiteDatabaseError:
    # The driver's own words name a cause, not a value; the statement and its parameters stay out of it.
    original = getattr(error, "orig", None)
    if getattr(original, "sqlite_errorcode", None) in _FULL:
        message = "this site's disk is full; nothing was written, and the site goes on by itself once there is room"
        return SiteDatabaseFullError(message, transaction=name)
    kind = "a rule of the tables was broken" if isinstance(error, IntegrityError) else "the database failed"
    message = f"{kind}; nothing was written"
    return SiteDatabaseError(message, transaction=name, reason=str(original or type(error).__name__)[:200])
