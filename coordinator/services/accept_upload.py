"""M5: a signed header, then the masked vector in parts, until a signed receipt. Resumable; the same again is the same.

What arrives is uniform noise until a threshold of sites has revealed shares. A header binds the vector by the root of
its chunks; bytes that do not have that root are thrown away, and never added.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.exchanges import exchange_key, find_upload, is_repeated
from coordinator.db.models import Upload
from coordinator.errors import (
    BlobError,
    BlobStoreFullError,
    BlobStoreUnavailableError,
    ConflictError,
    InvalidMessageError,
    NotFoundError,
)
from coordinator.rounds.events import MessageKind, UploadCompleted
from coordinator.rounds.participation_machine import ParticipationEvent
from coordinator.rounds.space import judge_space
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.exchange_steps import Incoming, is_last_of_phase, note_progress, store_message
from coordinator.services.receive_upload import BlobPart, UploadTruncatedError, open_sink, receive_parts
from coordinator.services.round_access import (
    exchange_facts,
    move_participation,
    require_exchange,
    site_actor,
)
from coordinator.services.upload_desk import UploadsBusyError
from coordinator.services.upload_progress import (
    Noted,
    ProgressNotes,
    check_is_collecting,
    note_waiting,
    phase_pause,
)
from fl_protocol.audit.events import AuditFact, AuditKind, text_from_instant
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.secagg.coordinator_role import check_m5
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext

__all__ = [
    "RECEIPT_KIND",
    "BlobPart",
    "UploadAlteredError",
    "UploadStatus",
    "UploadTruncatedError",
    "accept_upload",
    "partial_name",
    "query_upload",
]

_log = structlog.get_logger("coordinator.services")

RECEIPT_KIND = "WR/sig/receipt"
_KEY = ("run_id", "round_index", "round_attempt", "exchange_index", "exchange_attempt")


class UploadAlteredError(InvalidMessageError):
    """The bytes do not have the root that the header signs; they were thrown away."""

    code = "upload-altered"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How far an upload is."""

    received_bytes: int
    receipt: SignedBody | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """An upload that may go on."""

    partial: str
    n_bytes: int
    chunk_bytes: int
    chunk_root: bytes
    noted: Noted


async def query_upload(ctx: EngineContext, *, site_id: SiteId, exchange: ExchangeContext) -> UploadStatus:
    """Where to resume.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: the site may not.
    """

    def look(session: Session) -> UploadStatus | str:
        access = require_exchange(session, site_id, exchange)
        upload = find_upload(session, access.context, site_id)
        if upload is None:
            return UploadStatus(received_bytes=0, receipt=None)
        if (receipt := _receipt_of(upload)) is not None:
            return UploadStatus(received_bytes=upload.n_bytes, receipt=receipt)
        return partial_name(access.context, site_id)

    found = await ctx.db.read_async("query-upload", look)
    if isinstance(found, UploadStatus):
        return found
    # Outside of the transaction: the store may be at the other end of a network.
    return UploadStatus(received_bytes=await asyncio.to_thread(ctx.blobs.partial_size, found), receipt=None)


async def accept_upload(
    ctx: EngineContext,
    *,
    site_id: SiteId,
    exchange: ExchangeContext,
    m5: bytes,
    offset: int,
    parts: AsyncIterator[BlobPart],
) -> SignedBody:
    """Take a masked vector, or the rest of one.

    Args:
        ctx: the engine.
        site_id: whose it is.
        exchange: which sum it is for.
        m5: the signed header.
        offset: where the first part belongs: what ``query_upload`` said.
        parts: in order, without gaps.

    Returns:
        The receipt: ``pack(exchange, site, SHA-256 of m5, u64(length), chunk root, instant)``, signed "WR/sig/receipt".

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError, ConflictError, WrongPhaseError, LateError: may not.
        SecAggRefusedError: the header is wrong.
        UploadsBusyError: as many uploads are in flight as may be; waiting counts as progress of the phase.
        BlobOffsetError: a part does not continue what is held.
        ChunkAlteredError: a chunk is not what was sent; what came before it is held.
        PartialTakenOverError: a later stream of the same upload came.
        UploadTruncatedError, UploadAlteredError: the bytes are not those that the header announces.
        BlobStoreFullError, BlobStoreUnavailableError: no room, or no store; resume later. It counts as progress too.
    """
    incoming = Incoming(site_id=site_id, exchange=exchange, encoded=m5, now=ctx.now())
    try:
        begun = await ctx.db.run_tx_async("begin-upload", lambda session: _begin(ctx, session, incoming))
        if isinstance(begun, SignedBody):
            await _discard(ctx, partial_name(exchange, site_id))
            return begun
        async with ctx.uploads.place(begun.partial):
            sha256 = await _store(ctx, incoming, begun, offset=offset, parts=parts)
    except (UploadsBusyError, BlobStoreFullError, BlobStoreUnavailableError):
        # The site is at work, and has to come again for our sake: that is no silence.
        await ctx.db.run_tx_async("note-upload-waits", lambda session: note_waiting(ctx, session, incoming))
        raise
    complete = Incoming(site_id=site_id, exchange=exchange, encoded=m5, now=ctx.now())
    receipt, is_last = await ctx.db.run_tx_async(
        "complete-upload", lambda session: _complete(ctx, session, complete, plan=begun, sha256=sha256)
    )
    if is_last:
        ctx.wakeups.wake_driver()
    # Only now: whoever dies before the receipt is recorded finds the partial whole, and need not be sent it again.
    await _discard(ctx, begun.partial)
    return receipt


async def _store(
    ctx: EngineContext, incoming: Incoming, plan: _Plan, *, offset: int, parts: AsyncIterator[BlobPart]
) -> str:
    """Receive what is missing and make it a blob; its digest."""
    sink = await asyncio.to_thread(
        open_sink, ctx.blobs, ctx.uploads, partial=plan.partial, chunk_bytes=plan.chunk_bytes
    )
    notes = ProgressNotes(ctx, incoming, plan.noted)
    try:
        await receive_parts(sink, parts, offset=offset, n_bytes=plan.n_bytes, note=notes.hear)
        sha256, root = sink.digests.finish()
        if root != plan.chunk_root:
            await asyncio.to_thread(ctx.blobs.discard_partial, plan.partial)
            await ctx.db.run_tx_async("refuse-upload", lambda session: _refuse(session, incoming, "upload-altered"))
            raise UploadAlteredError(
                "the bytes do not have the signed root; send all of them again", site_id=incoming.site_id
            )
        await asyncio.to_thread(sink.finish, sha256)
        if (tree := sink.digests.wire_tree) is not None:
            ctx.upload_leaves.remember(sha256, tree)
    finally:
        await asyncio.to_thread(sink.close)
        await notes.settle()
        if sink.digests.n_bytes == sink.held < plan.n_bytes:
            ctx.uploads.keep(plan.partial, sink.digests, lineage=sink.writer.lineage)
    return sha256


async def _discard(ctx: EngineContext, partial: str) -> None:
    """Remove the partial of an upload that has its receipt; where that fails, the janitor finds it."""
    try:
        await asyncio.to_thread(ctx.blobs.discard_partial, partial)
    except BlobError as error:
        _log.warning("partial_not_discarded", partial=partial, code=error.code)


def _begin(ctx: EngineContext, session: Session, incoming: Incoming) -> SignedBody | _Plan:
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    upload = find_upload(session, access.context, incoming.site_id)
    header = SignedBody.decode(incoming.encoded)
    if upload is not None and (upload.header_body, upload.header_signature) != (header.body, header.signature):
        raise ConflictError("this site announced another vector for this exchange", site_id=incoming.site_id)
    if upload is not None and (receipt := _receipt_of(upload)) is not None:
        return receipt
    check_is_collecting(access, incoming.site_id)
    shared = ctx.roles.shared(session, access.exchange)
    said = check_m5(shared, incoming.encoded, sender=incoming.site_id)
    noted_at, pause = None, phase_pause(ctx, session, access)
    if upload is None:
        # What begins is progress, and is noted here.
        noted_at = incoming.now
        _check_space(ctx, said.n_bytes)
        upload = Upload(
            **dict(zip(_KEY, exchange_key(access.context), strict=True)),
            site_id=incoming.site_id,
            header_body=header.body,
            header_signature=header.signature,
            n_bytes=said.n_bytes,
            received_bytes=0,
            started_at=incoming.now,
        )
        session.add(upload)
        note_progress(access, now=incoming.now, pause=pause)
    return _Plan(
        partial=partial_name(access.context, incoming.site_id),
        n_bytes=said.n_bytes,
        chunk_bytes=shared.keyed.opened.params.chunk_bytes,
        chunk_root=said.chunk_root,
        noted=Noted.of(upload.received_bytes, at=noted_at, pause=pause),
    )


def _check_space(ctx: EngineContext, n_bytes: int) -> None:
    """Refuse an upload before its first byte where there is no room for the last one."""
    short = judge_space(n_bytes, ctx.blobs.free_bytes())
    if short is not None:
        raise BlobStoreFullError(
            "the coordinator's blob store has no room for this upload now; nothing is lost, try again later",
            needed_bytes=short.needed_bytes,
            free_bytes=short.free_bytes,
        )


def _complete(
    ctx: EngineContext, session: Session, incoming: Incoming, *, plan: _Plan, sha256: str
) -> tuple[SignedBody, bool]:
    """The receipt, and whether the driver has waited for this upload."""
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    upload = find_upload(session, access.context, incoming.site_id)
    if upload is None:
        raise NotFoundError("the upload was not begun", site_id=incoming.site_id)
    if (held := _receipt_of(upload)) is not None:
        return held, False
    check_is_collecting(access, incoming.site_id)
    receipt = sign_body(ctx.signer, RECEIPT_KIND, _receipt_body(access.context, incoming, plan))
    upload.received_bytes = plan.n_bytes
    upload.blob_sha256 = sha256
    upload.completed_at = incoming.now
    upload.receipt_body, upload.receipt_signature = receipt.body, receipt.signature
    if not is_repeated(
        session, access.context, kind=MessageKind.M5, site_id=incoming.site_id, encoded=incoming.encoded
    ):
        store_message(session, access, incoming, kind=MessageKind.M5)
    access.participation.bytes_up += plan.n_bytes
    move_participation(access.participation, ParticipationEvent.UPLOAD_COMPLETED, now=incoming.now)
    store_event(session, UploadCompleted(site_id=incoming.site_id), access.context, now=incoming.now)
    facts: dict[str, AuditFact] = {
        **exchange_facts(access.context),
        "site_id": incoming.site_id,
        "n_bytes": plan.n_bytes,
        "chunk_root": plan.chunk_root.hex(),
    }
    append_audit(session, AuditKind.UPLOAD_ACCEPTED, actor=site_actor(incoming.site_id), facts=facts, now=incoming.now)
    return receipt, is_last_of_phase(session, access, kind=MessageKind.M5, members=access.exchange.u2)


def _refuse(session: Session, incoming: Incoming, reason: str) -> None:
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    append_audit(
        session,
        AuditKind.UPLOAD_REFUSED,
        actor=site_actor(incoming.site_id),
        facts={**exchange_facts(access.context), "site_id": incoming.site_id, "reason": reason},
        now=incoming.now,
    )


def _receipt_of(upload: Upload) -> SignedBody | None:
    if upload.receipt_body is None or upload.receipt_signature is None:
        return None
    return SignedBody(body=upload.receipt_body, signature=upload.receipt_signature)


def _receipt_body(context: ExchangeContext, incoming: Incoming, plan: _Plan) -> bytes:
    return pack(
        context.encode(),
        incoming.site_id.encode(),
        hashlib.sha256(incoming.encoded).digest(),
        u64(plan.n_bytes),
        plan.chunk_root,
        text_from_instant(incoming.now).encode(),
    )


def partial_name(context: ExchangeContext, site_id: SiteId) -> str:
    """What the blob store calls the upload of that site while it is on its way."""
    return ".".join(str(part) for part in (*exchange_key(context), site_id))
