from __future__ import annotations

import sqlite3
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from site_agent.db.errors import SiteDatabaseError, SiteDatabaseVersionError
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.db.models import OneShotFlagRow, SiteSwitchRow
from site_agent.db.tx import SiteDb, open_site_db


def switch(name: str) -> SiteSwitchRow:
    return SiteSwitchRow(name=name, is_on=True, set_at="2026-01-31T12:00:00.000000Z", set_by="user:jane")


def names(session: Session) -> list[str]:
    return sorted(session.scalars(select(SiteSwitchRow.name)))


def test_run_tx_returning_keeps_what_was_written(site_db: SiteDb, tmp_path: Path) -> None:
    assert site_db.run_tx("write", lambda session: session.add(switch("a")) or "done") == "done"
    reopened = open_site_db(tmp_path / "site.db")
    assert reopened.run_read("read", names) == ["a"]
    reopened.close()


def test_run_tx_raising_keeps_nothing(site_db: SiteDb) -> None:
    def write(session: Session) -> None:
        session.add(switch("a"))
        session.flush()
        message = "stop"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="stop"):
        site_db.run_tx("write", write)
    assert site_db.run_read("read", names) == []


def test_run_tx_second_flag_of_a_context_fails_and_keeps_the_first(site_db: SiteDb) -> None:
    def flag(payload: str) -> None:
        row = OneShotFlagRow(kind="m9", context=b"c", payload_sha256=payload, at="2026-01-31T12:00:00.000000Z")
        site_db.run_tx("flag", lambda session: session.add(row))

    flag("first")
    with pytest.raises(SiteDatabaseError) as caught:
        flag("second")
    assert caught.value.facts["transaction"] == "flag"
    payloads = site_db.run_read("read", lambda session: list(session.scalars(select(OneShotFlagRow.payload_sha256))))
    assert payloads == ["first"]


def test_run_read_writes_nothing(site_db: SiteDb) -> None:
    def write(session: Session) -> None:
        session.add(switch("a"))
        session.flush()

    site_db.run_read("read", write)
    assert site_db.run_read("read", names) == []


def test_run_read_sees_one_snapshot_while_another_writes(site_db: SiteDb) -> None:
    def read(session: Session) -> tuple[list[str], list[str]]:
        before = names(session)
        site_db.run_tx("write", lambda other: other.add(switch("a")))
        session.expire_all()
        return before, names(session)

    assert site_db.run_read("read", read) == ([], [])
    assert site_db.run_read("read", names) == ["a"]


def test_open_site_db_makes_a_file_for_its_user_only(site_db: SiteDb, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "site.db").stat().st_mode) == 0o600
    assert site_db.run_read("mode", lambda s: s.connection().exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"
    assert site_db.run_read("sync", lambda s: s.connection().exec_driver_sql("PRAGMA synchronous").scalar()) == 2


def test_open_site_db_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SiteDatabaseVersionError) as caught:
        open_site_db(path)
    assert caught.value.facts == {"found": 99, "expected": 3}


def test_open_site_db_on_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.db"
    path.write_bytes(b"these bytes are no database, however long one looks at them" * 40)
    with pytest.raises(SiteDatabaseError):
        open_site_db(path)


def test_instant_text_has_one_spelling_and_reads_back() -> None:
    noon = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    assert instant_text(noon) == "2026-01-31T12:00:00.000000Z"
    assert instant_text(noon.astimezone(timezone(timedelta(hours=2)))) == "2026-01-31T12:00:00.000000Z"
    assert instant_from_text(instant_text(noon)) == noon


def test_instant_without_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        instant_text(datetime(2026, 1, 31))  # noqa: DTZ001 - the fault under test
    with pytest.raises(ValueError, match="time zone"):
        instant_from_text("2026-01-31T12:00:00")
