"""Committed results and the blobs that go with them, for the sites of the run, absent ones included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, latest_exchange
from coordinator.db.models import Exchange, Round
from coordinator.db.rounds import committed_round
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError, NotFoundError, NotInCohortError
from coordinator.services.context import EngineContext
from coordinator.services.prefix_digests import PrefixDigests
from coordinator.services.round_access import require_active_site, require_run
from coordinator.services.site_instructions import PublishedResult, published_result
from coordinator.services.site_presence import is_note_due, note_seen
from fl_protocol.codec import merkle
from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.ids import RunId, SiteId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext

_log = structlog.get_logger("coordinator.services")

_READ_AT_ONCE = 4
"""Chunks, in one hop to a thread. Twice as many are in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPart:
    """Some bytes of a blob, where they belong, and one of two digests.

    ``prefix_sha256`` is of the blob up to their end; where that is not known, ``leaf_sha256`` is SHA-256(0x00 || data).
    """

    offset: int
    data: bytes
    prefix_sha256: bytes = b""
    leaf_sha256: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedResult:
    """M0 and M10 of a committed round."""

    manifest: SignedBody
    result: PublishedResult


async def get_result(ctx: EngineContext, *, site_id: SiteId, run_id: RunId, round_index: int) -> CommittedResult:
    """The result of a committed round.

    Raises:
        SiteNotActiveError, NotInCohortError: the site is not of the run's roster, or may not act.
        NotFoundError: the round is not committed.
    """

    def look(session: Session) -> CommittedResult:
        require_member(ctx, session, site_id, run_id)
        round_row, exchange = published_exchange(session, run_id, round_index)
        manifest = SignedBody(body=round_row.manifest_body, signature=round_row.manifest_signature)
        return CommittedResult(manifest=manifest, result=published_result(exchange))

    return await ctx.db.read_async("get-result", look)


async def download_blob(
    ctx: EngineContext, *, site_id: SiteId, run_id: RunId, sha256: str, offset: int
) -> AsyncIterator[SentPart]:
    """The initial public state or a published sum of the run, from ``offset`` on.

    Raises:
        SiteNotActiveError, NotInCohortError: the site is not of the run's roster, or may not act.
        NotFoundError, BlobNotFoundError: the run publishes no such blob.
        BlobOffsetError: the offset is past its end.
    """
    context = await ctx.db.read_async(
        "download-blob", lambda session: _published_blob(ctx, session, site_id, run_id=run_id, sha256=sha256)
    )
    parts = await asyncio.to_thread(_open_parts, ctx, sha256, offset=offset)
    position, noted_at = offset, ctx.now()
    reading = _read_ahead(parts)
    try:
        while ready := await reading:
            # The next chunks are read while these are on their way; there are never more.
            reading = _read_ahead(parts)
            for part in ready:
                position += len(part.data)
                yield part
            noted_at = await _note_seen(ctx, site_id, noted_at)
    finally:
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # asked for, so that asyncio does not call it forgotten
        if context is not None and position > offset:
            ctx.traffic.add(site_id, context, position - offset)


async def _note_seen(ctx: EngineContext, site_id: SiteId, noted_at: datetime) -> datetime:
    """Whoever takes bytes for minutes asks nothing meanwhile, and is there all the same; when that was noted last."""
    now = ctx.now()
    if not is_note_due(noted_at, now=now):
        return noted_at
    try:
        await ctx.db.run_tx_async("note-site-seen", lambda session: note_seen(session, site_id, now=now))
    except (DatabaseBusyError, DatabaseUnavailableError) as error:
        # The blob needs no database, and the next note says the same.
        _log.warning("download_not_noted", site_id=site_id, code=error.code)
    return now


def _read_ahead(parts: Iterator[SentPart]) -> asyncio.Task[list[SentPart]]:
    return asyncio.create_task(asyncio.to_thread(lambda: list(islice(parts, _READ_AT_ONCE))))


def _open_parts(ctx: EngineContext, sha256: str, *, offset: int) -> Iterator[SentPart]:
    # Up to the next boundary first, so that the chunks of every download are the same.
    n_first = CHUNK_BYTES - offset % CHUNK_BYTES
    chunks = ctx.blobs.iter_chunks(sha256, offset=offset, chunk_bytes=n_first)
    if n_first != CHUNK_BYTES:
        first = next(chunks, b"")
        rest = ctx.blobs.iter_chunks(sha256, offset=offset + len(first), chunk_bytes=CHUNK_BYTES)
        chunks = chain([first] if first else [], rest)
    return _parts(ctx.digests.of(sha256), chunks, offset=offset)


def _parts(digests: PrefixDigests, chunks: Iterator[bytes], *, offset: int) -> Iterator[SentPart]:
    for data in chunks:
        prefix = digests.through(data, offset=offset)
        if prefix is None:
            yield SentPart(offset=offset, data=data, leaf_sha256=merkle.leaf_hash(data))
        else:
            yield SentPart(offset=offset, data=data, prefix_sha256=prefix)
        offset += len(data)


def require_member(ctx: EngineContext, session: Session, site_id: SiteId, run_id: RunId) -> None:
    """Check that a site may act, and is of the run's roster. Raises SiteNotActiveError, NotInCohortError."""
    require_active_site(session, site_id)
    run = require_run(session, run_id)
    if site_id not in ctx.roles.run_facts(run).spec.cohort.pins:
        raise NotInCohortError("this site is not of the run's roster", site_id=site_id, run_id=run_id)


def published_exchange(session: Session, run_id: str, round_index: int) -> tuple[Round, Exchange]:
    """A committed round, and the exchange that its sum was made in. Raises NotFoundError."""
    round_row = committed_round(session, run_id, round_index)
    exchange = None if round_row is None else latest_exchange(session, round_row)
    if round_row is None or exchange is None:
        raise NotFoundError("this round has no published result", run_id=run_id, round_index=round_index)
    return round_row, exchange


def _published_blob(
    ctx: EngineContext, session: Session, site_id: SiteId, *, run_id: RunId, sha256: str
) -> ExchangeContext | None:
    """The exchange whose sum the blob is; None for the initial state."""
    require_member(ctx, session, site_id, run_id)
    if require_run(session, run_id).initial_blob_sha256 == sha256:
        return None
    on = (
        (Round.run_id == Exchange.run_id)
        & (Round.round_index == Exchange.round_index)
        & (Round.round_attempt == Exchange.round_attempt)
    )
    query = (
        select(Exchange)
        .join(Round, on)
        .where(
            Exchange.run_id == run_id,
            Exchange.sum_blob_sha256 == sha256,
            Exchange.sum_bytes.is_not(None),
            Round.state == "COMMITTED",
        )
        .limit(1)
    )
    exchange = session.scalars(query).one_or_none()
    if exchange is None:
        raise NotFoundError("the run publishes no such blob", run_id=run_id, sha256=sha256[:64])
    return context_of(exchange)
