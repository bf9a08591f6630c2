"""What a database's error means to a transaction, whatever the driver calls it."""

from __future__ import annotations

import sqlite3
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

_UNIQUE_VIOLATION = "23505"
_DISK_FULL = "53100"
# The log's index beside the file is mapped into memory: room for it is asked for first, and refused by these.
_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
_SQLITE_UNWRITABLE = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}
)
"""Primary codes: an extended one has them in its lowest byte."""
_NO_TABLE = "no such table"
# A standby or a server set to read-only; no table, no rights on it; a damaged page or index.
_UNWRITABLE = frozenset({"25006", "42P01", "42501", "XX001", "XX002"})
_CONTENTION = frozenset({"40001", "40P01", "55P03"})
# Shut down, crashed, starting up, out of connections, idle for too long; class 08 is the connection itself.
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "53300"})
# The server answers, and will not have us: credentials, or no such database.
_TURNED_AWAY = frozenset({"28000", "28P01", "3D000"})


class LinkLostError(Exception):
    """The connection broke under a statement: what the driver reports as an error of the socket."""


class Fault(StrEnum):
    """Why a statement or a transaction failed."""

    CONTENTION = "contention"
    """Another transaction was in the way; this one left no trace."""
    TAKEN = "taken"
    """A unique key is there already: by another transaction at the same time, or by a fault of ours."""
    LOST = "lost"
    """The connection is gone, or none is to be had. What was not committed is not there."""
    TURNED_AWAY = "turned-away"
    """The server refuses this user or has no such database."""
    FULL = "full"
    """There is no room for it on the database's disk. Nothing was written."""
    UNWRITABLE = "unwritable"
    """The database is read-only, damaged, or lacks a table. Nothing was written."""
    NO_CONNECTION_FREE = "no-connection-free"
    """All of this process's connections are in use."""
    OTHER = "other"
    """A fault of the statement."""


_BY_STATE = (
    (_CONTENTION, Fault.CONTENTION),
    ({_DISK_FULL}, Fault.FULL),
    ({_UNIQUE_VIOLATION}, Fault.TAKEN),
    (_UNWRITABLE, Fault.UNWRITABLE),
    (_TURNED_AWAY, Fault.TURNED_AWAY),
)


def fault_of(error: BaseException) -> Fault:
    """What an error that came out of a transaction means."""
    if isinstance(error, LinkLostError):
        return Fault.LOST
    if isinstance(error, PoolTimeoutError):
        return Fault.NO_CONNECTION_FREE
    if not isinstance(error, DBAPIError):
        return Fault.OTHER
    if isinstance(error.orig, sqlite3.DatabaseError):
        return _fault_of_sqlite(error.orig)
    return _fault_of_server_error(error)


def _fault_of_sqlite(error: sqlite3.DatabaseError) -> Fault:
    text, code = str(error), getattr(error, "sqlite_errorcode", None)
    if code in _SQLITE_FULL:
        return Fault.FULL
    if (isinstance(code, int) and code & 0xFF in _SQLITE_UNWRITABLE) or _NO_TABLE in text:
        return Fault.UNWRITABLE
    is_busy = isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text)
    return Fault.CONTENTION if is_busy else Fault.OTHER


def _fault_of_server_error(error: DBAPIError) -> Fault:
    state = sqlstate_of(error.orig)
    for states, fault in _BY_STATE:
        if state in states:
            return fault
    if error.connection_invalidated or state in _LOST or (state or "").startswith("08"):
        return Fault.LOST
    # The driver's InterfaceError is about the connection: refused, reset, closed.
    is_of_the_link = isinstance(error, InterfaceError) and not isinstance(error.orig, sqlite3.Error)
    return Fault.LOST if is_of_the_link else Fault.OTHER


def sqlstate_of(error: BaseException | None) -> str | None:
    """The five characters of a server's error, from pg8000 (a dictionary of fields) or another (an attribute)."""
    if error is None:
        return None
    fields = error.args[0] if error.args else None
    if isinstance(fields, dict):
        state = fields.get("C")
        return state if isinstance(state, str) else None
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def said_by(error: BaseException) -> str:
    """The server's or the driver's own sentence, short, for a log line and an operator's eyes."""
    origin = getattr(error, "orig", None) or error.__cause__ or error
    fields = origin.args[0] if origin.args else None
    if isinstance(fields, dict):
        return str(fields.get("M", origin))[:200]
    return (str(origin) or type(origin).__name__)[:200]
