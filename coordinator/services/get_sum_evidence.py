"""What a site needs to do the unmasking of a published sum again: the evidence, and single chunks of masked uploads.

Only of committed rounds, only of survivors, and only within the round's audit window: what is scrubbed is gone. A
reader learns nothing that the sum does not say, as long as fewer than a threshold of the cohort pool their shares
(decision 0039). Afterwards there are the signed words of the sites that checked while it could be done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, find_upload, messages_of
from coordinator.db.models import Exchange, Round, Site
from coordinator.db.rounds import participations_of
from coordinator.errors import InvalidMessageError, NotFoundError, ScrubbedError
from coordinator.rounds.events import MessageKind
from coordinator.services.context import EngineContext
from coordinator.services.get_result import published_exchange, require_member
from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.ids import RunId, SiteId
from fl_protocol.secagg.coordinator_role import SurvivingCohort, make_sum_evidence
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext

_READ_AT_ONCE = 2
"""Chunks, in one hop to a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumWitness:
    """A site's signed word on a result, and the key that it is signed with."""

    site_id: SiteId
    signing_spki: bytes
    acknowledgement: SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class SumEvidenceAnswer:
    """The evidence; or, where it was scrubbed, nothing and the witnesses."""

    evidence: bytes = field(default=b"", repr=False)
    witnesses: tuple[SumWitness, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMaskedChunk:
    """One chunk of a survivor's masked vector, and its path under the root that the survivor signed."""

    site_id: SiteId
    chunk_index: int
    data: bytes = field(repr=False)
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What the evidence is made of."""

    exchange: Exchange
    surviving: SurvivingCohort
    m9s: Mapping[SiteId, bytes]


async def get_sum_evidence(
    ctx: EngineContext, *, site_id: SiteId, run_id: RunId, round_index: int
) -> SumEvidenceAnswer:
    """The evidence of a committed round's sum.

    Raises:
        SiteNotActiveError, NotInCohortError: the site is not of the run's roster, or may not act.
        NotFoundError: the round is not committed.
    """

    def look(session: Session) -> _Stored | SumEvidenceAnswer:
        round_row, exchange = _published(ctx, session, site_id, run_id=run_id, round_index=round_index)
        if exchange.scrubbed_at is not None:
            return SumEvidenceAnswer(witnesses=_witnesses(session, round_row))
        return _Stored(
            exchange=exchange,
            surviving=ctx.roles.surviving(session, exchange),
            m9s=messages_of(session, context_of(exchange), kind=MessageKind.M9, sites=exchange.u5),
        )

    found = await ctx.db.read_async("get-sum-evidence", look)
    if isinstance(found, SumEvidenceAnswer):
        return found
    evidence = await asyncio.to_thread(
        ctx.roles.relay, "sum-evidence", found.exchange, lambda: make_sum_evidence(found.surviving, found.m9s)
    )
    return SumEvidenceAnswer(evidence=evidence)


async def get_masked_chunk(
    ctx: EngineContext, *, site_id: SiteId, run_id: RunId, round_index: int, of_site: SiteId, chunk_index: int
) -> SentMaskedChunk:
    """One chunk of what a survivor of a committed round uploaded.

    Raises:
        SiteNotActiveError, NotInCohortError: the asking site is not of the run's roster, or may not act.
        NotFoundError: the round is not committed, the other site is no survivor of it, or the vector has no such chunk.
        ScrubbedError, BlobNotFoundError: the round's audit window has closed.
    """

    def look(session: Session) -> tuple[ExchangeContext, str]:
        _, exchange = _published(ctx, session, site_id, run_id=run_id, round_index=round_index)
        name = _vector_in_sum(session, exchange, of_site, chunks=range(chunk_index, chunk_index + 1))
        return context_of(exchange), name

    context, name = await ctx.db.read_async("get-masked-chunk", look)
    sent = await asyncio.to_thread(_read_chunk, ctx, of_site, name=name, chunk_index=chunk_index)
    ctx.traffic.add(site_id, context, len(sent.data))
    return sent


async def get_masked_window(
    ctx: EngineContext, *, site_id: SiteId, run_id: RunId, round_index: int, chunks: range
) -> AsyncIterator[SentMaskedChunk]:
    """The same chunks of every survivor, the sites in ascending order, with one look at the database.

    Raises:
        InvalidMessageError: ``chunks`` is empty.
        SiteNotActiveError, NotInCohortError, NotFoundError, ScrubbedError, BlobNotFoundError: as ``get_masked_chunk``.
    """
    if not chunks:
        raise InvalidMessageError("a window has at least one chunk", run_id=run_id)

    def look(session: Session) -> tuple[ExchangeContext, dict[SiteId, str]]:
        _, exchange = _published(ctx, session, site_id, run_id=run_id, round_index=round_index)
        survivors = sorted(exchange.u3 or ())
        return context_of(exchange), {
            site: _vector_in_sum(session, exchange, site, chunks=chunks) for site in map(SiteId, survivors)
        }

    context, names = await ctx.db.read_async("get-masked-window", look)
    wanted = ((site, index) for site in names for index in chunks)
    n_bytes = 0
    try:
        while some := tuple(islice(wanted, _READ_AT_ONCE)):
            for sent in await asyncio.to_thread(_read_chunks, ctx, names, some):
                n_bytes += len(sent.data)
                yield sent
    finally:
        ctx.traffic.add(site_id, context, n_bytes)


def _vector_in_sum(session: Session, exchange: Exchange, of_site: SiteId, *, chunks: range) -> str:
    """The name of a survivor's masked vector, which has these chunks. Raises NotFoundError, ScrubbedError."""
    where: dict[str, str | int] = {"run_id": exchange.run_id, "round_index": exchange.round_index}
    # Safety: a vector that is not in the sum stays here. Its site's other secret may have been revealed.
    upload = find_upload(session, context_of(exchange), of_site) if of_site in (exchange.u3 or ()) else None
    if upload is None or upload.blob_sha256 is None:
        raise NotFoundError("this site's vector is not in the sum", **where)
    if upload.scrubbed_at is not None:
        raise ScrubbedError("the masked uploads of this round were deleted when its audit window closed", **where)
    if chunks[-1] * CHUNK_BYTES >= upload.n_bytes:
        raise NotFoundError("the vector has no such chunk", **where, chunk_index=chunks[-1])
    return upload.blob_sha256


def _read_chunks(
    ctx: EngineContext, names: Mapping[SiteId, str], wanted: Sequence[tuple[SiteId, int]]
) -> list[SentMaskedChunk]:
    return [_read_chunk(ctx, site, name=names[site], chunk_index=index) for site, index in wanted]


def _read_chunk(ctx: EngineContext, of_site: SiteId, *, name: str, chunk_index: int) -> SentMaskedChunk:
    tree = ctx.upload_leaves.of(ctx.blobs, name)
    offset = chunk_index * CHUNK_BYTES
    data = next(ctx.blobs.iter_chunks(name, offset=offset, chunk_bytes=CHUNK_BYTES))
    return SentMaskedChunk(site_id=of_site, chunk_index=chunk_index, data=data, path=tree.path(chunk_index))


def _published(
    ctx: EngineContext, session: Session, site_id: SiteId, *, run_id: RunId, round_index: int
) -> tuple[Round, Exchange]:
    require_member(ctx, session, site_id, run_id)
    return published_exchange(session, run_id, round_index)


def _witnesses(session: Session, round_row: Round) -> tuple[SumWitness, ...]:
    witnesses = []
    for site_id, row in sorted(participations_of(session, round_row).items()):
        site = session.get(Site, site_id)
        if row.acknowledgement_body is None or row.acknowledgement_signature is None:
            continue
        if row.acknowledged_state_sha256 != round_row.state_sha256_after or site is None or site.signing_spki is None:
            continue
        acknowledgement = SignedBody(body=row.acknowledgement_body, signature=row.acknowledgement_signature)
        witness = SumWitness(site_id=site_id, signing_spki=site.signing_spki, acknowledgement=acknowledgement)
        witnesses.append(witness)
    return tuple(witnesses)
