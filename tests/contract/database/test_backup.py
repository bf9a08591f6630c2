"""A backup of one database restores into the other: the rows are the same by type, not by driver."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Base, Event
from coordinator.upkeep.errors import RestoreTargetError
from coordinator.upkeep.restore import RestoreOptions, restore_backup
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.system

_PLACE = Path(__file__).parents[2] / "unit" / "coordinator" / "services"
_CHANGED = {"audit_events", "audit_tip", "audit_checkpoints", "coordinator_epochs", "leases", "schema_floor"}


def _load(name: str, file: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _PLACE / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


_load("coordinator_engine_lab", "engine_lab.py")
restoring: Any = _load("coordinator_restore_lab", "restore_lab.py")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer.create()
    yield made
    made.dispose()


async def test_backup_of_sqlite_restores_into_postgresql_and_back(tmp_path: Path, server: PostgresServer) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    rows = restoring.rows_of(lab.db)
    names = [table.name for table in Base.metadata.sorted_tables if table.name not in _CHANGED | {"commit_markers"}]
    restoring.back_up(lab, installation, tmp_path / "sqlite.tar")

    url = server.url_for(server.create_database())
    options = RestoreOptions(passphrase=restoring.PASSPHRASE, database_url=url)
    _, second = restoring.restore_under(lab, tmp_path / "sqlite.tar", tmp_path / "second", options=options)
    assert lab.db.is_server
    there = restoring.rows_of(lab.db)
    # Rows that the new epoch ended differ by that alone.
    ended = {"rounds", "exchanges", "events", "outbox"}
    for name in names:
        if name not in ended:
            assert there(name) == rows(name), name
        else:
            assert len(there(name)) == len(rows(name)), name

    # The counters go on above the rows that were put in with numbers of their own.
    highest = lab.db.read("highest", lambda session: max(session.scalars(select(Event.id)), default=0))

    def add(session: Session) -> int:
        event = Event(run_id=lab.run().run_id, kind="SiteReported", payload={}, created_at=lab.clock.at)
        event.consumed_at = lab.clock.at
        session.add(event)
        session.flush()
        return event.id

    assert lab.db.run_tx("add", add) > highest
    with pytest.raises(RestoreTargetError):
        restore_backup(
            tmp_path / "sqlite.tar", tmp_path / "again", clock=lab.clock, options=options, report=restoring.quiet
        )

    restoring.back_up(lab, second, tmp_path / "postgres.tar")
    before = {name: there(name) for name in names}
    options = RestoreOptions(passphrase=restoring.PASSPHRASE, database_url="sqlite:///coordinator.db")
    made, _ = restoring.restore_under(lab, tmp_path / "postgres.tar", tmp_path / "third", options=options)
    assert made.epoch == 2
    assert not lab.db.is_server
    back = restoring.rows_of(lab.db)
    for name in names:
        if name not in ended:
            assert back(name) == before[name], name
    lab.db.dispose()
