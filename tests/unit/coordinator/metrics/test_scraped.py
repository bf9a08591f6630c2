"""What a scrape reads: right figures, by indexes, and quickly in a database of years."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.db.migrate import migrate
from coordinator.db.models import OutboxEntry, Round, Run, Site
from coordinator.db.tx import Database
from coordinator.metrics.scraped import Scraped, ScrapeDesk
from coordinator.services.upload_desk import UploadDesk
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
N_RUNS, N_ROUNDS = 60, 100


@dataclass(frozen=True, slots=True)
class Still:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.from_path(tmp_path / "coordinator.db")
    migrate(made.engine)
    yield made
    made.dispose()


def desk_over(database: Database, folder: Path) -> ScrapeDesk:
    return ScrapeDesk(
        Scraped(
            db=database,
            blobs=FilesystemBlobStore(folder / "blobs"),
            directory=folder,
            clock=Still(),
            uploads=UploadDesk(),
            certificates=lambda: {"root": NOW + timedelta(days=2), "issuer": NOW - timedelta(hours=1)},
            last_turn_at=lambda: NOW - timedelta(seconds=7),
            version="9.9",
            roles="api,driver",
        )
    )


def read(desk: ScrapeDesk) -> dict[tuple[str, ...], float]:
    return {(each.metric.name.removeprefix("wardround_coordinator_"), *each.labels): each.value for each in desk.read()}


def fill(session: Session) -> None:
    """Years: runs that ended, with rounds and effects that are done; one run at work; three sites."""
    digest = "0" * 64
    runs, rounds, effects = [], [], []
    for number in range(N_RUNS + 1):
        run_id = f"run-{number:026d}"
        is_live = number == N_RUNS
        runs.append(
            {
                "run_id": run_id,
                "name": "n",
                "state": "ACTIVE" if is_live else "COMPLETED",
                "run_spec_json": b"{}",
                "run_spec_sha256": digest,
                "layout_json": b"{}",
                "layout_blob_sha256": digest,
                "initial_blob_sha256": digest,
                "public_state_sha256": digest,
                "public_state_blob_sha256": digest,
                "created_by": "n",
                "created_at": NOW,
            }
        )
        for index in range(N_ROUNDS):
            is_open = is_live and index == N_ROUNDS - 1
            rounds.append(
                {
                    "run_id": run_id,
                    "round_index": index,
                    "round_attempt": 0,
                    "kind": "train",
                    "state": "EXCHANGING" if is_open else "COMMITTED",
                    "manifest_body": b"",
                    "manifest_signature": b"",
                    "opened_at": NOW,
                    "deadline_at": NOW,
                }
            )
            effects += [
                {
                    "run_id": run_id,
                    "kind": kind,
                    "payload": {},
                    "created_at": NOW - timedelta(seconds=40),
                    "attempts": 0,
                    "done_at": None if is_open else NOW,
                }
                for kind in ("compute-sum", "fold-round")
            ]
    session.execute(insert(Run), runs)
    session.execute(insert(Round), rounds)
    session.execute(insert(OutboxEntry), effects)
    seen = {"st-mary": 5.0, "charite": 700.0}
    for site_id, age_s in seen.items():
        session.add(
            Site(site_id=site_id, state="ENROLLED", created_at=NOW, last_seen_at=NOW - timedelta(seconds=age_s))
        )
    session.add(Site(site_id="gone", state="REVOKED", created_at=NOW, last_seen_at=NOW))


def test_scrape_reads_what_the_rows_say(database: Database, tmp_path: Path) -> None:
    database.run_tx("fill", fill)
    found = read(desk_over(database, tmp_path))
    assert found["runs", "ACTIVE"] == 1
    assert found["runs", "COMPLETED"] == N_RUNS
    assert found["runs", "FAILED"] == 0
    assert found["rounds_open", "EXCHANGING"] == 1
    assert found["rounds_open", "TRAINING"] == 0
    assert found["sites", "ENROLLED"] == 2
    assert found["sites", "REVOKED"] == 1
    assert found["site_last_seen_age_seconds", "st-mary"] == 5.0
    assert found["site_last_seen_age_seconds", "charite"] == 700.0
    assert ("site_last_seen_age_seconds", "gone") not in found
    assert found["outbox_effects",] == 2
    assert found["outbox_oldest_age_seconds",] == 40.0
    assert found["certificate_seconds_left", "root"] == 2 * 86400.0
    assert found["certificate_seconds_left", "issuer"] == -3600.0
    assert found["driver_last_turn_age_seconds",] == 7.0
    assert found["database_up",] == 1.0
    assert found["build_info", "9.9", "api,driver"] == 1.0
    assert found["audit_rows",] == 0


def test_every_metric_that_is_read_at_the_scrape_is_read(database: Database, tmp_path: Path) -> None:
    database.run_tx("fill", fill)
    read_now = {each.metric.name for each in desk_over(database, tmp_path).read()}
    assert read_now == {metric.name for metric in COORDINATOR_METRICS if metric.is_read_at_scrape}


def test_database_that_is_away_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    away = Database.from_path(tmp_path / "empty.db")
    found = read(desk_over(away, tmp_path))
    away.dispose()
    assert found["database_up",] == 0.0
    assert ("outbox_effects",) not in found
    assert found["disk_free_bytes",] > 0


def test_scrape_walks_no_table_that_grows_with_the_years(database: Database, tmp_path: Path) -> None:
    database.run_tx("fill", fill)
    statements: list[tuple[str, object]] = []

    def remember(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            statements.append((statement, parameters))

    sql_event.listen(database.engine, "before_cursor_execute", remember)
    desk_over(database, tmp_path).read()
    sql_event.remove(database.engine, "before_cursor_execute", remember)
    assert len(statements) >= 6
    with database.engine.connect() as connection:
        plans = [
            " ".join(str(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
            for statement, parameters in statements
        ]
    for plan in plans:
        for table in ("rounds", "outbox", "audit_events", "events", "uploads", "exchange_messages"):
            assert f"SCAN {table}" not in plan, plan


def test_scrape_of_a_database_of_years_is_quick_and_asked_for_once_a_second(database: Database, tmp_path: Path) -> None:
    database.run_tx("fill", fill)
    desk = desk_over(database, tmp_path)
    began = time.process_time()
    desk.read()
    first_s = time.process_time() - began
    assert first_s < 0.5
    database.run_tx("gone", lambda session: session.execute(text("DELETE FROM sites")))
    assert read(desk)["sites", "ENROLLED"] == 2
