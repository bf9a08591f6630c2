from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.folder import SiteFolder
from site_agent.metrics.scraped import SiteScrape
from site_agent.supervision.status_board import StatusBoard

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Still:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture
def db(tmp_path: Path) -> SiteDb:
    return open_site_db(tmp_path / "site.db")


@pytest.fixture
def board(tmp_path: Path) -> StatusBoard:
    return StatusBoard(tmp_path / "status.json", SiteId("st-mary"), Still())


def readings(db: SiteDb, board: StatusBoard, folder: Path) -> dict[str, float]:
    scrape = SiteScrape(board=board, db=db, folder=SiteFolder(root=folder), clock=Still(), version="9.9")
    return {each.metric.name.removeprefix("wardround_site_"): each.value for each in scrape.read()}


def test_scrape_reads_the_board_the_journal_and_the_log(db: SiteDb, board: StatusBoard, tmp_path: Path) -> None:
    board.connected(is_connected=True)
    board.change_state("masked")
    board.certificate(until=NOW + timedelta(hours=5), renews_at=NOW)
    for number, age_s in enumerate((30.0, 400.0)):
        spool = tmp_path / "journal" / f"run-{number}" / "0.0.0.0" / "masked.bin"
        spool.parent.mkdir(parents=True)
        spool.touch()
        at = NOW.timestamp() - age_s
        os.utime(spool, (at, at))
    found = readings(db, board, tmp_path)
    assert found["connected"] == 1
    assert found["recording"] == 1
    assert found["in_round"] == 1
    assert found["certificate_seconds_left"] == 5 * 3600
    assert (found["spooled_uploads"], found["spool_oldest_age_seconds"]) == (2, 400.0)
    assert found["audit_rows"] == 0
    assert set(found) == {
        metric.name.removeprefix("wardround_site_") for metric in SITE_METRICS if metric.is_read_at_scrape
    }


def test_site_that_is_idle_and_cannot_record_says_so(db: SiteDb, board: StatusBoard, tmp_path: Path) -> None:
    board.recording("site-disk-full")
    board.change_state("settled")
    found = readings(db, board, tmp_path)
    assert (found["connected"], found["recording"], found["in_round"]) == (0, 0, 0)
    assert found["spool_oldest_age_seconds"] == 0
    assert "certificate_seconds_left" not in found
