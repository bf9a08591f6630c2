"""The status file: whole, current, and written only when there is something to write."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from fl_protocol.ids import SiteId
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.tx import open_site_db
from site_agent.supervision.status_board import StatusBoard


class StillClock:
    def now(self) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_status_holds_every_key_of_its_contract(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path / "status.json", SiteId("alpha"), StillClock())
    board.connected(is_connected=True)
    board.change(lambda status: replace(status, state="training", step=3, steps=10, loss=2.5))
    board.write()
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "site_id": "alpha",
        "state": "training",
        "connected": True,
        "transport": "grpc",
        "run_id": None,
        "round_index": None,
        "activity": None,
        "step": 3,
        "steps": 10,
        "loss": 2.5,
        "problem": None,
        "certificate_until": None,
        "certificate_renews_at": None,
        "cannot_record": None,
        "refused_because": None,
        "training_failure": None,
        "updated_at": "2026-01-02T03:04:05.000000Z",
    }


def test_status_says_what_keeps_a_site_from_recording_until_it_can(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path / "status.json", SiteId("alpha"), StillClock())
    db = open_site_db(tmp_path / "site.db")
    db.watch_writes(board.recording)

    def shown() -> object:
        board.write()
        return json.loads((tmp_path / "status.json").read_text())["cannot_record"]

    def write() -> None:
        db.run_tx("write", lambda session: session.execute(text("UPDATE site_switches SET is_on = is_on")))

    write()
    assert shown() is None
    db.run_tx("break", lambda session: session.execute(text("ALTER TABLE site_switches RENAME TO gone")))
    with pytest.raises(SiteDatabaseError):
        write()
    assert shown() == "site-database-failed"
    # That the coordinator answers changes nothing of it.
    board.connected(is_connected=True)
    assert shown() == "site-database-failed"
    db.run_tx("mend", lambda session: session.execute(text("ALTER TABLE gone RENAME TO site_switches")))
    write()
    assert shown() is None
    db.close()


def test_status_unchanged_is_not_written_again(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path / "status.json", SiteId("alpha"), StillClock())
    board.write()
    (tmp_path / "status.json").unlink()
    board.write()
    assert not (tmp_path / "status.json").exists()
    board.write(even_if_same=True)
    assert (tmp_path / "status.json").exists()
