"""Blobs that must go: those of scrubbed uploads, what is left of uploads that never ended, and what nobody names.

Each step looks, deletes, and then writes down that it did; after a crash it is done again, and deleting again is
nothing. A blob that any row still names is never deleted. One that none names (it was stored before a transaction that
never came) is deleted after a grace period, during which whoever stored it may still name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from coordinator.db.blob_references import named_blobs
from coordinator.db.exchanges import context_of, exchange_key
from coordinator.db.models import Exchange, OrphanBlob, Upload
from coordinator.db.tables import table_of
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.services.accept_upload import partial_name
from coordinator.services.context import EngineContext
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext

_BATCH = 200
_FINAL = tuple(state.value for state in ExchangeState if state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remains:
    """What the store may hold of one upload."""

    context: ExchangeContext
    site_id: SiteId
    blob_sha256: str | None


def delete_scrubbed(ctx: EngineContext) -> int:
    """Delete what scrubbed uploads left in the store; returns how many uploads are done with. Runs in a thread."""

    def look(session: Session) -> list[_Remains]:
        offset = 0
        while rows := _remains(session, Upload.scrubbed_at.is_not(None), offset=offset):
            named = named_blobs(session, {row.blob_sha256 for row in rows if row.blob_sha256 is not None})
            # Named by something else: not ours to delete, and no reason to leave what comes after it.
            if free := [row for row in rows if row.blob_sha256 not in named]:
                return free
            offset += len(rows)
        return []

    free = ctx.db.read("scrubbed-uploads", look)
    _delete(ctx, free)
    return len(free)


def delete_dead_partials(ctx: EngineContext, *, grace: timedelta) -> int:
    """Delete the parts of uploads whose exchange ended a grace period ago without them. Runs in a thread."""
    ended_before = ctx.now() - grace

    def look(session: Session) -> list[_Remains]:
        return _remains(
            session,
            Upload.completed_at.is_(None),
            Exchange.state.in_(_FINAL),
            Exchange.finished_at <= ended_before,
        )

    rows = ctx.db.read("dead-partials", look)
    _delete(ctx, rows)
    return len(rows)


def collect_orphans(ctx: EngineContext, *, grace: timedelta) -> int:
    """Delete blobs that no row has named for a grace period; returns how many. Runs in a thread.

    Between the last look at the rows and the deletion, a transaction could name a blob that was stored more than a
    grace period ago and never named since: whoever takes that long stores it again first (storing a known blob again
    costs nothing, and ``put_blob`` then begins its grace anew).
    """
    now = ctx.now()
    for digests in _batches(ctx):
        ctx.db.run_tx("note-orphans", partial(_note, digests=digests, now=now))
    found = ctx.db.run_tx("take-orphans", lambda session: _take(session, seen_before=now - grace))
    for sha256 in found:
        ctx.blobs.delete(sha256)

    def forget(session: Session) -> None:
        session.execute(delete(OrphanBlob).where(OrphanBlob.sha256.in_(found)))

    if found:
        ctx.db.run_tx("forget-orphans", forget)
    return len(found)


def begin_grace_anew(session: Session, sha256: str) -> None:
    """A blob was stored (again): whoever did it has the whole grace period to name it."""
    session.execute(delete(OrphanBlob).where(OrphanBlob.sha256 == sha256))


def _batches(ctx: EngineContext) -> Iterator[tuple[str, ...]]:
    digests = ctx.blobs.iter_digests()
    while batch := tuple(islice(digests, _BATCH)):
        yield batch


def _note(session: Session, *, digests: Sequence[str], now: datetime) -> None:
    named = named_blobs(session, digests)
    known = set(session.scalars(select(OrphanBlob.sha256).where(OrphanBlob.sha256.in_(digests))))
    session.execute(delete(OrphanBlob).where(OrphanBlob.sha256.in_(list(known & named))))
    for sha256 in set(digests) - named - known:
        session.add(OrphanBlob(sha256=sha256, first_seen_at=now))


def _take(session: Session, *, seen_before: datetime) -> list[str]:
    old = list(session.scalars(select(OrphanBlob.sha256).where(OrphanBlob.first_seen_at <= seen_before).limit(_BATCH)))
    named = named_blobs(session, old)
    session.execute(delete(OrphanBlob).where(OrphanBlob.sha256.in_(list(named))))
    return [sha256 for sha256 in old if sha256 not in named]


def _remains(session: Session, *conditions: ColumnElement[bool], offset: int = 0) -> list[_Remains]:
    on = (
        (Exchange.run_id == Upload.run_id)
        & (Exchange.round_index == Upload.round_index)
        & (Exchange.round_attempt == Upload.round_attempt)
        & (Exchange.exchange_index == Upload.exchange_index)
        & (Exchange.exchange_attempt == Upload.exchange_attempt)
    )
    query = (
        select(Upload, Exchange)
        .join(Exchange, on)
        .where(Upload.blob_deleted_at.is_(None), *conditions)
        .order_by(Upload.started_at, *table_of(Upload).primary_key.columns)
        .offset(offset)
        .limit(_BATCH)
    )
    return [
        _Remains(
            context=context_of(exchange),
            site_id=SiteId(upload.site_id),
            blob_sha256=upload.blob_sha256,
        )
        for upload, exchange in session.execute(query)
    ]


def _delete(ctx: EngineContext, rows: Sequence[_Remains]) -> None:
    for row in rows:
        if row.blob_sha256 is not None:
            ctx.blobs.delete(row.blob_sha256)
        ctx.blobs.discard_partial(partial_name(row.context, row.site_id))
    now = ctx.now()

    def mark(session: Session) -> None:
        for row in rows:
            upload = session.get(Upload, (*exchange_key(row.context), row.site_id))
            if upload is not None:
                upload.blob_deleted_at = now
                upload.received_bytes = upload.received_bytes if upload.completed_at is not None else 0

    if rows:
        ctx.db.run_tx("mark-deleted", mark)
