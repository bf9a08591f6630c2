"""Bring a database to the schema of this version, from inside the program: there is no alembic.ini to keep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum
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


class SchemaStanding(StrEnum):
    """How the database's schema stands to that of this version."""

    CURRENT = "current"
    """It is this version's."""
    AHEAD = "ahead"
    """A newer version has expanded it; this version goes on with it."""
    BEHIND = "behind"
    """It has to be migrated first."""
    PAST = "past"
    """A newer version has contracted it: something that this version needs is gone."""


def migrate(engine: Engine, revision: str = "head") -> None:
    """Upgrade to ``revision``; a database that is there already, or that a newer version has expanded, stays."""
    if revision == "head" and schema_standing(engine) is SchemaStanding.AHEAD:
        return
    _run(engine, command.upgrade, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to ``revision``; ``base`` is the empty database."""
    _run(engine, command.downgrade, revision)


def is_current(engine: Engine) -> bool:
    """Whether this version can work with the database as it is: of its own schema, or of one that was only expanded.

    Raises:
        DatabaseUnavailableError: it does not answer.
    """
    return schema_standing(engine) in {SchemaStanding.CURRENT, SchemaStanding.AHEAD}


def schema_standing(engine: Engine) -> SchemaStanding:
    """How the database stands to this version.

    A version cannot know what later migrations do. So the database says itself, in ``schema_floor``, which is the
    oldest schema whose programs may still work with it; only a migration that contracts raises that.

    Raises:
        DatabaseUnavailableError: it does not answer.
    """
    held, head = held_revision(engine), head_revision()
    if held == head:
        return SchemaStanding.CURRENT
    if held is None or is_known_revision(held):
        return SchemaStanding.BEHIND
    with _unavailable_named(), engine.connect() as connection:
        floor = connection.scalar(text("SELECT revision FROM schema_floor"))
    return SchemaStanding.AHEAD if is_known_revision(str(floor)) else SchemaStanding.PAST


def held_revision(engine: Engine) -> str | None:
    """The revision that the database says it has; None for an empty one."""
    with _unavailable_named(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """This version's revision."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there is a first migration"
    return head


def is_known_revision(revision: str) -> bool:
    """Whether this version has that migration."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


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
