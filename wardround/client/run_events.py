"""The server-sent events of one run: run and round documents as they change, until the run has ended.

Each connection begins with the whole present state, so a lost connection is simply opened again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from wardround.documents import Document, as_document


class RunEventKind(StrEnum):
    """What an event is about; others than these are passed over."""

    RUN = "run"
    ROUND = "round"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStreamEvent:
    """One event with its document."""

    kind: RunEventKind
    document: Document


def events_from_lines(lines: Iterable[str]) -> Iterator[RunStreamEvent]:
    """Read a ``text/event-stream`` (WHATWG HTML, section 9.2.6), as much of it as the coordinator uses.

    Raises:
        ResponseUnreadableError: the data of a known event is no JSON object.
    """
    kind = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data and kind in set(RunEventKind):
                yield RunStreamEvent(kind=RunEventKind(kind), document=_document("\n".join(data)))
            kind, data = "", []
        elif line.startswith("event:"):
            kind = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))


def _document(text: str) -> Document:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return as_document(value, source="the stream of events")
