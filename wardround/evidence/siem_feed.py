"""The coordinator's events as lines for a SIEM, in order, without gaps; a small file says how far a reader is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO

from fl_protocol.audit.cef import LoggedEvent, syslog_line
from fl_protocol.audit.events import AuditFact
from wardround.documents import Document, as_document, integer_of, text_of
from wardround.errors import EvidenceFaultError, UnavailableError, UsageInvalidError

_EVENTS = "/api/v1/audit/events"
_NONE_YET = -1


class ListsPages(Protocol):
    """The one call that a feed needs."""

    def pages(self, path: str, **query: str | int) -> Iterator[Document]:
        """Every item of a list."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """How a feed runs.

    Attributes:
        since_seq: the last event that is known already.
        cursor: a file that holds the last event that was written; it wins over ``since_seq``.
        poll_s: how long to wait before asking again; None: stop at the end of the log.
        origin: whose log, for the lines.
        version: of this program, for the lines.
    """

    since_seq: int = _NONE_YET
    cursor: Path | None = None
    poll_s: float | None = None
    origin: str
    version: str


def write_feed(client: ListsPages, out: TextIO, options: FeedOptions) -> int:
    """Write every event after the last known one, a line each; returns how many.

    A line is flushed before the cursor moves past it: who starts again may see the last lines twice, and misses none.

    Raises:
        EvidenceFaultError: the coordinator's list has a gap.
        UsageInvalidError: the cursor's file holds something else.
        UnavailableError: the coordinator does not answer; with ``poll_s`` it is asked again instead.
    """
    last = _read_cursor(options)
    n_lines = 0
    while True:
        try:
            for line, seq in _lines(client, last, options):
                out.write(line + "\n")
                last = seq
                n_lines += 1
                if n_lines % 500 == 0:
                    _keep(out, options, last)
        except UnavailableError:
            if options.poll_s is None:
                raise
        _keep(out, options, last)
        if options.poll_s is None:
            return n_lines
        time.sleep(options.poll_s)


def _lines(client: ListsPages, last: int, options: FeedOptions) -> Iterator[tuple[str, int]]:
    expected = last + 1
    for item in client.pages(_EVENTS, after_seq=last):
        event = _event(item, options.origin)
        if event.seq != expected:
            message = f"the coordinator's list of events goes from {expected - 1} to {event.seq}"
            raise EvidenceFaultError(message, advice="Verify its log: wardround audit verify", row=expected)
        yield syslog_line(event, version=options.version), event.seq
        expected += 1


def _event(item: Document, origin: str) -> LoggedEvent:
    facts = {
        key: value if value is None or isinstance(value, str | int) else str(value)
        for key, value in as_document(item.get("facts"), source="an event").items()
    }
    known: dict[str, AuditFact] = facts
    return LoggedEvent(
        origin=origin,
        seq=integer_of(item, "seq"),
        leaf_sha256=text_of(item, "leaf_sha256"),
        at=datetime.fromisoformat(text_of(item, "at")),
        kind=text_of(item, "kind"),
        actor=text_of(item, "actor"),
        facts=known,
    )


def _read_cursor(options: FeedOptions) -> int:
    if options.cursor is None or not options.cursor.exists():
        return options.since_seq
    try:
        return int(options.cursor.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        message = f"{options.cursor} does not hold the number of an event"
        raise UsageInvalidError(message, advice="Delete it to begin anew, or name another file.") from error


def _keep(out: TextIO, options: FeedOptions, last: int) -> None:
    out.flush()
    if options.cursor is None:
        return
    beside = options.cursor.with_name(f".{options.cursor.name}.partial")
    beside.write_text(f"{last}\n", encoding="ascii")
    beside.replace(options.cursor)
