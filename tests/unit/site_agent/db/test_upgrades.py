"""A file of an earlier version is brought up with every row in it, and is then as a new one is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from site_agent.approvals.run_records import find_run, unsent_statements
from site_agent.datasets.registry import find_dataset
from site_agent.db.errors import SiteDatabaseVersionError
from site_agent.db.tx import open_site_db

VECTORS = Path(__file__).parents[3] / "vectors" / "site_db"
"""Dumps of databases as earlier versions made them; written once, by those versions."""

RUN_ID = "run-" + "a" * 26


def file_of_version(version: int, path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript((VECTORS / f"{version}.sql").read_text())
    connection.close()
    return path


def columns(path: Path) -> dict[str, set[tuple[object, ...]]]:
    """Name, type, whether it must be there and its part in the key, of every column of every table."""
    connection = sqlite3.connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {table: {row[1:] for row in connection.execute(f"PRAGMA table_info({table})")} for table in tables}
    connection.close()
    return found


def test_open_site_db_of_version_2_keeps_its_rows_and_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    old, new = file_of_version(2, tmp_path / "old.db"), tmp_path / "new.db"
    db = open_site_db(old)
    dataset = db.run_read("find", lambda session: find_dataset(session, "medical-qa"))
    assert dataset is not None
    assert (dataset.n_records, dataset.n_patients, dataset.sha256) == (120, 60, "ab" * 32)
    record = db.run_read("find", lambda session: find_run(session, RUN_ID))
    assert (record.state, record.approved_by, record.expires_at) == ("approved", "jane", None)
    assert [unsent.run_id for unsent in db.run_read("unsent", unsent_statements)] == [RUN_ID]
    db.close()
    open_site_db(new).close()
    assert columns(old) == columns(new)
    # Opened again, it is not another version's any more.
    open_site_db(old).close()


def test_open_site_db_of_a_version_that_was_never_released_is_refused(tmp_path: Path) -> None:
    path = file_of_version(2, tmp_path / "site.db")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = columns(path)
    with pytest.raises(SiteDatabaseVersionError):
        open_site_db(path)
    assert columns(path) == before
