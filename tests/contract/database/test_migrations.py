"""Migrations go up, down and up again on both databases, and end where the models are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect

from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import downgrade, is_current, migrate
from coordinator.db.models import Base


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgresql":
        server = request.getfixturevalue("running_postgres")
        url = server.url_for(server.create_database())
    else:
        url = f"sqlite:///{tmp_path / 'empty.db'}"
    engine = engine_from_url(url)
    yield engine
    engine.dispose()


def test_migrations_go_up_down_up_and_equal_the_models(empty: Engine) -> None:
    assert not is_current(empty)
    migrate(empty)
    migrate(empty)
    assert is_current(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    downgrade(empty, "base")
    assert inspect(empty).get_table_names() == ["alembic_version"]
    migrate(empty)
    assert is_current(empty)


def test_two_replicas_that_migrate_at_once_both_find_it_done(empty: Engine) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            migrate(empty)
        except BaseException as error:  # noqa: BLE001 # asserted below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_current(empty)
