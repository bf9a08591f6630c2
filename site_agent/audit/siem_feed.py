"""This site's events as lines for a SIEM, in order and without gaps; a small file says how far a reader has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fl_protocol.audit.cef import LoggedEvent, syslog_line
from fl_protocol.audit.events import event_from_bytes
from site_agent.audit.store import AuditLogDamagedError
from site_agent.db.models import AuditEventRow
from site_agent.db.tables import table_of
from site_agent.db.tx import SiteDb
from site_agent.durable_files import write_whole

_NONE_YET = -1
_AT_ONCE = 500
_EVENTS = table_of(AuditEventRow)
_AFTER = (
    select(_EVENTS.c.seq, _EVENTS.c.body, _EVENTS.c.leaf_sha256)
    .where(_EVENTS.c.seq > bindparam("last"))
    .order_by(_EVENTS.c.seq)
    .limit(_AT_ONCE)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """How a feed runs.

    Attributes:
        since_seq: the last event that is known already.
        cursor: a file that holds the last event that was written; it wins over ``since_seq``.
        poll_s: how long to wait before looking again; None: stop at the end of the log.
        origin: whose log, for the lines.
        version: of this program, for the lines.
    """

    since_seq: int = _NONE_YET
    cursor: Path | None = None
    poll_s: float | None = None
    origin: str
    version: str


def write_feed(db: SiteDb, out: TextIO, options: FeedOptions) -> int:
    """Write every event after the last known one, a line each; returns how many.

    A line is flushed before the cursor moves past it: who starts again may see the last lines twice, and misses none.

    Raises:
        AuditLogDamagedError: a row is missing or is no event.
        CursorInvalidError: the cursor's file holds something else.
        SiteDatabaseError: the log cannot be read.
        OSError: the line or the cursor cannot be written.
    """
    last = _read_cursor(options)
    n_lines = 0
    while True:
        lines = [syslog_line(event, version=options.version) for event in _events(db, last, options.origin)]
        out.writelines(line + "\n" for line in lines)
        out.flush()
        last, n_lines = last + len(lines), n_lines + len(lines)
        if options.cursor is not None and lines:
            write_whole(options.cursor, f"{last}\n".encode("ascii"))
        if len(lines) == _AT_ONCE:
            continue
        if options.poll_s is None:
            return n_lines
        time.sleep(options.poll_s)


class CursorInvalidError(AuditLogDamagedError):
    """The file that says how far a reader has come holds something else."""

    code = "cursor-invalid"


def _events(db: SiteDb, last: int, origin: str) -> Iterator[LoggedEvent]:
    def read(session: Session) -> list[tuple[int, bytes, str]]:
        return [(int(seq), bytes(body), str(leaf)) for seq, body, leaf in session.execute(_AFTER, {"last": last})]

    for place, (seq, body, leaf) in enumerate(db.run_read("siem-feed", read), start=last + 1):
        if seq != place:
            raise AuditLogDamagedError(
                "a row of the audit log is missing; run 'wardround-site audit verify'", row=place
            )
        event = event_from_bytes(body).event
        yield LoggedEvent(
            origin=origin,
            seq=seq,
            leaf_sha256=leaf,
            at=event.at,
            kind=event.kind.value,
            actor=event.actor,
            facts=event.facts,
        )


def _read_cursor(options: FeedOptions) -> int:
    if options.cursor is None or not options.cursor.exists():
        return options.since_seq
    try:
        return int(options.cursor.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        message = f"{options.cursor} does not hold the number of an event; delete it to begin anew"
        raise CursorInvalidError(message) from error
