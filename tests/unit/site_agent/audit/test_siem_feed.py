from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import SystemClock
from fl_protocol.testing.entropy import seeded_signer
from site_agent.audit.siem_feed import CursorInvalidError, FeedOptions, write_feed
from site_agent.audit.store import AuditLog, AuditLogDamagedError
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import SiteDb, open_site_db


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SiteDb]:
    opened = open_site_db(tmp_path / "site.db")
    yield opened
    opened.close()


def append(db: SiteDb, n_events: int) -> None:
    log = AuditLog(seeded_signer("a"), SystemClock(), "site:a")
    for _ in range(n_events):
        db.run_tx("append", lambda session: log.append(session, AuditKind.POLICY_LOADED, "user:ada"))


def options(**changes: object) -> FeedOptions:
    return FeedOptions(**{"origin": "site:a", "version": "1", **changes})  # type: ignore[arg-type]


def numbers(text: str) -> list[int]:
    return [int(re.findall(r" externalId=(\d+) ", line)[0]) for line in text.splitlines()]


def feed(db: SiteDb, **changes: object) -> list[int]:
    out = io.StringIO()
    n_lines = write_feed(db, out, options(**changes))
    found = numbers(out.getvalue())
    assert len(found) == n_lines
    return found


def test_feed_has_every_event_in_order_and_more_than_one_page(db: SiteDb) -> None:
    append(db, 503)
    assert feed(db) == list(range(503))
    assert feed(db, since_seq=500) == [501, 502]


def test_cursor_leaves_no_gap_and_repeats_nothing_that_was_written_whole(db: SiteDb, tmp_path: Path) -> None:
    append(db, 3)
    cursor = tmp_path / "cursor"
    assert feed(db, cursor=cursor) == [0, 1, 2]
    assert feed(db, cursor=cursor) == []
    append(db, 2)
    assert feed(db, cursor=cursor, since_seq=0) == [3, 4]


def test_reader_that_dies_before_its_lines_are_written_gets_them_again(db: SiteDb, tmp_path: Path) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    append(db, 3)
    cursor = tmp_path / "cursor"
    with pytest.raises(OSError, match="No space"):
        write_feed(db, Full(), options(cursor=cursor))
    assert feed(db, cursor=cursor) == [0, 1, 2]


def test_cursor_that_holds_something_else_is_refused(db: SiteDb, tmp_path: Path) -> None:
    (tmp_path / "cursor").write_text("five")
    with pytest.raises(CursorInvalidError):
        feed(db, cursor=tmp_path / "cursor")


def test_missing_row_stops_the_feed(db: SiteDb) -> None:
    append(db, 4)
    db.run_tx("drop", lambda session: session.execute(delete(AuditEventRow).where(AuditEventRow.seq == 2)))
    with pytest.raises(AuditLogDamagedError) as caught:
        feed(db)
    assert caught.value.facts["row"] == 2
