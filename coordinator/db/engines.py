"""Engines whose connections behave as ``tx`` promises, for SQLite and for PostgreSQL (pg8000)."""

from __future__ import annotations

import sqlite3
import ssl

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from coordinator.db.faults import Fault, LinkLostError, fault_of

_BUSY_TIMEOUT_MS = 5_000
_ANSWER_TIMEOUT_S = 60.0
_POOL_WAIT_S = 20.0


def engine_from_url(
    url: str,
    *,
    pool_size: int = 16,
    answer_timeout_s: float | None = _ANSWER_TIMEOUT_S,
    trust: ssl.SSLContext | None = None,
) -> Engine:
    """An engine whose connections behave as ``tx`` promises.

    Args:
        url: an SQLAlchemy address, such as ``sqlite:////var/lib/wardround/coordinator.db`` or
            ``postgresql+pg8000://wardround@db.example/wardround``.
        pool_size: PostgreSQL: the most connections that this process opens.
        answer_timeout_s: PostgreSQL: how long a statement may take before its connection is given up; None for
            migrations, whose statements may be long.
        trust: PostgreSQL: whom to believe as its server; without it TLS is used where it is offered, and not checked.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    engine = create_engine(
        url,
        isolation_level="SERIALIZABLE",
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
    )

    def connect(
        dialect: Dialect, record: ConnectionPoolEntry, arguments: list[object], named: dict[str, object]
    ) -> DBAPIConnection | None:
        del record, arguments
        if "unix_sock" in named or dialect.driver != "pg8000":
            return None
        # Loaded here: whoever keeps SQLite needs no pg8000.
        from coordinator.db.links import open_link

        return open_link(named, answer_timeout_s=answer_timeout_s, trust=trust)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "handle_error", _name_lost_links, retval=True)
    _name_links_lost_at_a_ping(engine.dialect)
    return engine


def _name_links_lost_at_a_ping(dialect: Dialect) -> None:
    """Let the pool replace a connection that breaks while it is asked whether it lives.

    The pool takes the driver's errors for an answer, and lets the bare error of a socket through to whoever wanted a
    connection; ``handle_error`` is not asked there.
    """
    ping = dialect.do_ping

    def do_ping(dbapi_connection: DBAPIConnection) -> bool:
        try:
            return ping(dbapi_connection)
        except OSError as error:
            assert dialect.loaded_dbapi is not None
            raise dialect.loaded_dbapi.InterfaceError(f"network error: {error}") from error

    dialect.do_ping = do_ping  # type: ignore[method-assign]


def _sqlite_engine(url: str) -> Engine:
    # More connections than threads: nobody waits for one while it holds the write lock.
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_size=8, max_overflow=120)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _name_lost_links(context: ExceptionContext) -> BaseException | None:
    """Let the pool forget a connection that broke, and give the socket's bare error a name.

    pg8000 passes some errors of its socket on as they are, and tells a shutdown of the server as any other error.
    """
    error = context.original_exception
    if isinstance(error, OSError):
        context.is_disconnect = True
        lost = LinkLostError(str(error) or type(error).__name__)
        lost.__cause__ = error
        return lost
    if context.sqlalchemy_exception is not None and fault_of(context.sqlalchemy_exception) is Fault.LOST:
        context.is_disconnect = True
    return None


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
    # What is deleted is overwritten: shares that were scrubbed are not to be found in free pages.
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    deferred = connection.get_execution_options().get("wardround_read_only", False)
    connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")
