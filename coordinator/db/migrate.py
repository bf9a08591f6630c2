"""Bring a database to the schema of this version, from inside the program: there is no alembic.ini to keep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from coordinator.db.faults import Fault, fault_of, said_by
from coordinator.errors import DatabaseUnavailableError

_MIGRATION_LOCK = 0x57415244
_SCRIPTS = Path(__file__).parent / "migrations"


def migrate(engine: Engine, revision: str = "head") -> None:
    """Upgrade to ``revision``; a database that is there already stays as it is."""
    _run(engine, command.upgrade, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to ``revision``; ``base`` is the empty database."""
    _run(engine, command.downgrade, revision)


def is_current(engine: Engine) -> bool:
    """Whether the database has the schema of this version.

    Raises:
        DatabaseUnavailableError: it does not answer.
    """
    with _unavailable_named(), engine.connect() as connection:
        held = MigrationContext.configure(connection).get_current_revision()
    return held == ScriptDirectory.from_config(_config()).get_current_head()


@contextlib.contextmanager
def _unavailable_named() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if fault_of(error) in {Fault.LOST, Fault.TURNED_AWAY}:
            message = "the database does not answer; see that it runs and that database.url is right"
            raise DatabaseUnavailableError(message, error=said_by(error)) from error
        raise


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(engine: Engine, step: Callable[[Config, str], None], revision: str) -> None:
    config = _config()
    # READ COMMITTED: whoever waited for another's migration sees what it did.
    isolation = {} if engine.dialect.name == "sqlite" else {"isolation_level": "READ COMMITTED"}
    with _unavailable_named(), engine.execution_options(**isolation).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        step(config, revision)
