"""The audit log as people read it, and as a file that anybody can verify without this coordinator."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.db.audit import audit_head
from coordinator.db.models import AuditCheckpoint, AuditRow
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.refusals import RequestInvalidError
from coordinator.services.resources import Resources
from fl_protocol.audit.events import AuditKind, event_from_bytes

_EXPORT_ROWS = 500
_Lines = Callable[[Session], list[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEventView:
    """One recorded event."""

    seq: int
    at: datetime
    kind: str
    actor: str
    facts: Mapping[str, object]
    leaf_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """A signed head; body and signature in base 64."""

    size: int
    head: str
    at: datetime
    body: str
    signature: str


def list_audit_events(
    resources: Resources, page: PageRequest, *, kind: str | None = None, after_seq: int | None = None
) -> Page[AuditEventView]:
    """Events in the order of the log.

    Raises:
        RequestInvalidError: there is no event of this kind, or the cursor is another list's.
    """
    if kind is not None and kind not in set(AuditKind):
        raise RequestInvalidError("there is no event of this kind", kind=kind[:80])
    after = _number(page.after) if page.after is not None else after_seq

    def read(session: Session) -> list[tuple[str, AuditEventView]]:
        query = select(AuditRow).order_by(AuditRow.seq).limit(page.limit + 1)
        if kind is not None:
            query = query.where(AuditRow.kind == kind)
        if after is not None:
            query = query.where(AuditRow.seq > after)
        return [(str(row.seq), _event_view(row)) for row in session.scalars(query)]

    return page_from(resources.db.read("list_audit_events", read), page)


def list_checkpoints(resources: Resources, page: PageRequest) -> Page[CheckpointView]:
    """Signed heads, the shortest first.

    Raises:
        RequestInvalidError: the cursor is another list's.
    """
    after = _number(page.after) if page.after is not None else None

    def read(session: Session) -> list[tuple[str, CheckpointView]]:
        query = select(AuditCheckpoint).order_by(AuditCheckpoint.size).limit(page.limit + 1)
        if after is not None:
            query = query.where(AuditCheckpoint.size > after)
        return [(str(row.size), checkpoint_view(row)) for row in session.scalars(query)]

    return page_from(resources.db.read("list_checkpoints", read), page)


def checkpoint_view(row: AuditCheckpoint) -> CheckpointView:
    """What of a row is shown."""
    return CheckpointView(
        size=row.size,
        head=row.head,
        at=row.at,
        body=_text(row.body),
        signature=_text(row.signature),
    )


def iter_audit_export(resources: Resources) -> Iterator[bytes]:
    """The whole log as lines of JSON: a header, every event's exact bytes, every checkpoint.

    Rows are only ever added, so pages read one after another make one log; it ends where it ended at the start.
    """
    size = resources.db.read("audit_size", _claimed_size)
    yield _line(
        {"log": "wardround-audit", "origin": resources.origin, "signing_spki": _text(resources.signer.spki_der)}
    )
    start = 0
    while start < size:
        end = min(start + _EXPORT_ROWS, size)
        yield from resources.db.read("export_events", _rows_between(start, end))
        start = end
    yield from resources.db.read("export_checkpoints", _checkpoints_up_to(size))


def _claimed_size(session: Session) -> int:
    """How long the log says that it is: by its tip, its rows and what was signed, whichever is longest.

    Never by counting rows: a log whose end was cut would be exported as a shorter one, without the signatures over what
    is missing, and would verify.
    """
    last = session.scalar(select(func.max(AuditRow.seq)))
    signed = session.scalar(select(func.max(AuditCheckpoint.size))) or 0
    size, _ = audit_head(session)
    return max(size, signed, 0 if last is None else last + 1)


def _rows_between(start: int, end: int) -> _Lines:
    def read(session: Session) -> list[bytes]:
        query = select(AuditRow).where(AuditRow.seq >= start, AuditRow.seq < end).order_by(AuditRow.seq)
        return [
            _line({"seq": row.seq, "body": _text(row.body), "leaf_sha256": row.leaf_sha256})
            for row in session.scalars(query)
        ]

    return read


def _checkpoints_up_to(size: int) -> _Lines:
    def read(session: Session) -> list[bytes]:
        query = select(AuditCheckpoint).where(AuditCheckpoint.size <= size).order_by(AuditCheckpoint.size)
        views = [checkpoint_view(row) for row in session.scalars(query)]
        return [
            _line(
                {
                    "checkpoint": {
                        "size": view.size,
                        "head": view.head,
                        "at": view.at.isoformat(),
                        "body": view.body,
                        "signature": view.signature,
                    }
                }
            )
            for view in views
        ]

    return read


def _event_view(row: AuditRow) -> AuditEventView:
    event = event_from_bytes(row.body).event
    return AuditEventView(
        seq=row.seq,
        at=event.at,
        kind=event.kind.value,
        actor=event.actor,
        facts=dict(event.facts),
        leaf_sha256=row.leaf_sha256,
    )


def _number(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit():
        raise RequestInvalidError("the cursor is not one that this list gave")
    return int(cursor)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"
