"""The status file: whole, current, and written only when there is something to write."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fl_protocol.ids import SiteId
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
        "updated_at": "2026-01-02T03:04:05.000000Z",
    }


def test_status_unchanged_is_not_written_again(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path / "status.json", SiteId("alpha"), StillClock())
    board.write()
    (tmp_path / "status.json").unlink()
    board.write()
    assert not (tmp_path / "status.json").exists()
    board.write(even_if_same=True)
    assert (tmp_path / "status.json").exists()
