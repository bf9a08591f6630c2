"""Rolling upgrades: what a version does with a database of another, and that migrations of one version only expand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from coordinator.db.migrate import SchemaStanding, downgrade, head_revision, is_current, migrate, schema_standing
from coordinator.db.tx import Database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    database = Database.from_path(tmp_path / "test.db")
    yield database.engine
    database.dispose()


def set_revision(engine: Engine, revision: str, *, floor: str | None = None) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
        if floor is not None:
            connection.execute(text("UPDATE schema_floor SET revision = :to"), {"to": floor})


def test_empty_and_older_databases_are_behind(engine: Engine) -> None:
    assert schema_standing(engine) is SchemaStanding.BEHIND
    migrate(engine, "0001")
    assert schema_standing(engine) is SchemaStanding.BEHIND
    assert not is_current(engine)
    migrate(engine)
    assert schema_standing(engine) is SchemaStanding.CURRENT


def test_database_that_a_newer_version_expanded_is_served_and_left_alone(engine: Engine) -> None:
    migrate(engine)
    set_revision(engine, "9999")
    assert schema_standing(engine) is SchemaStanding.AHEAD
    assert is_current(engine)
    migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_database_that_a_newer_version_contracted_is_refused(engine: Engine) -> None:
    migrate(engine)
    set_revision(engine, "9999", floor="9998")
    assert schema_standing(engine) is SchemaStanding.PAST
    assert not is_current(engine)


def test_later_migrations_add_nothing_that_an_older_process_would_have_to_fill(engine: Engine) -> None:
    migrate(engine, "0001")
    before = {
        table: {column["name"]: column for column in inspect(engine).get_columns(table)}
        for table in inspect(engine).get_table_names()
    }
    migrate(engine)
    for table, columns in before.items():
        after = {column["name"]: column for column in inspect(engine).get_columns(table)}
        assert columns.keys() <= after.keys(), table
        for name in after.keys() - columns.keys():
            assert after[name]["nullable"] or after[name]["default"] is not None, (table, name)
        for name, column in columns.items():
            assert after[name]["nullable"] == column["nullable"], (table, name)


def test_process_with_the_older_schema_writes_on_while_and_after_it_is_migrated(tmp_path: Path) -> None:
    database = Database.from_path(tmp_path / "shared.db")
    migrate(database.engine, "0001")
    older = database.engine.connect()
    write = text("INSERT INTO leases (name, holder, expires_at) VALUES (:name, 'old', '2026-01-01 00:00:00')")
    with older.begin():
        older.execute(write, {"name": "before"})
    migrate(database.engine)
    with older.begin():
        older.execute(write, {"name": "after"})
        assert older.scalar(text("SELECT count(*) FROM leases")) == 2
    older.close()
    database.dispose()


def test_revisions_go_up_down_and_up_again_and_keep_the_rows_that_both_have(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO leases (name, holder, expires_at) VALUES ('x', 'y', '2026-01-01')"))
    downgrade(engine, "0002")
    assert "coordinator_epochs" not in inspect(engine).get_table_names()
    migrate(engine)
    assert schema_standing(engine) is SchemaStanding.CURRENT
    assert head_revision() != "0002"
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM leases")) == 1
