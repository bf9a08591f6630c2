"""A published sum, checked before it is folded: the unmasking done again for chunks that this site chooses.

Evidence and chunks come from the coordinator and are believed in nothing: every statement is signed by a site that
this one approved, and every chunk lies under a root that its site signed before the sum was known (``reexecution``).
Once the evidence is scrubbed, the signed words of other sites that checked in time stand in for it (decision 0039).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

from fl_protocol.audit.events import AuditKind
from fl_protocol.codec.chunks import ChunkInvalidError
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId
from fl_protocol.packing import PackedBytesInvalidError, pack, u32, unpack
from fl_protocol.secagg.key_agreement import hkdf
from fl_protocol.secagg.messages import ExchangeResult
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.secagg.reexecution import (
    ChunkWindow,
    MaskedChunk,
    Reexecution,
    SumFalseError,
    decode_sum_evidence,
    read_sum_evidence,
)
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from site_agent.errors import CoordinatorRefusedError, RoundRefusedError
from site_agent.link.client import ShownChunk, SumWitness
from site_agent.link.instructions import PublishedResult
from site_agent.policy.rules import SumCheckMode
from site_agent.session.events import round_of
from site_agent.state.first_results import hold_to_first_result
from site_agent.supervision.approved_runs import ApprovedRun
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.sum_sampling import every_chunk, sampled_chunks

ACKNOWLEDGEMENT_KIND = "WR/sig/ack"
_SAMPLE_KIND = "WR/sig/sum-sample"
"""Safety: such a signature never leaves this site. It is only hashed, into the seed of a draw."""

_WITHHOLDS = frozenset({"NOT_FOUND", "UNIMPLEMENTED"})
"""With other statuses the coordinator refuses this site, and not what it asks for."""

_SHORTEST_WINDOW_S = 600
"""As long as a phase waits for a site that says nothing. Evidence that is gone sooner is asked for again until then."""

_MOST_KNOWN_FALSE = 64


class _ChunkWithheldError(Exception):
    """A window ended early, or holds another chunk than the next one."""


class SumChecker:
    """Checks published sums for one site."""

    def __init__(self, seams: SiteSeams) -> None:
        """Work with these seams."""
        self._seams = seams
        self._known_false: OrderedDict[bytes, None] = OrderedDict()

    async def check(
        self,
        run: ApprovedRun,
        manifest: RoundManifest,
        published: PublishedResult,
        *,
        result: ExchangeResult,
        total: RingVector,
    ) -> tuple[SiteId, ...]:
        """Check a sum; returns over which sites it is, and nobody where that could not be learned.

        Args:
            run: the approved run.
            manifest: M0 of the round, verified.
            published: M10 as received.
            result: what M10 says, verified.
            total: the sum, whose digest M10 names.

        Raises:
            RoundRefusedError: ``result-changed``, ``sum-false``, ``sum-evidence-invalid``, ``sum-evidence-withheld``,
                ``sum-unwitnessed``.
            LinkError: something could not be fetched; the same is asked again.
        """
        context = published.exchange
        said = _body_sha256(published)
        seams = self._seams
        await asyncio.to_thread(hold_to_first_result, seams.db, seams.clock, context, body_sha256=said.hex())
        if said in self._known_false:
            # The coordinator may offer it for ever; it is neither fetched nor recorded again.
            raise _refused("sum-false", "this sum was found false before", manifest)
        try:
            answer = await self._seams.client.get_sum_evidence(context.run_id, context.round_index)
        except CoordinatorRefusedError as error:
            if error.facts.get("status") not in _WITHHOLDS:
                raise
            message = "the coordinator shows no evidence for its sum; one before 0.2 has to be upgraded first"
            raise _refused("sum-evidence-withheld", message, manifest) from error
        if not answer.evidence:
            await self._count_witnesses(run, manifest, published, answer.witnesses)
            return ()
        peers = PeerVerifier(approved=run.spec.cohort.pins)
        try:
            reexecution = await asyncio.to_thread(
                lambda: read_sum_evidence(
                    decode_sum_evidence(answer.evidence),
                    h_manifest=result.h_manifest,
                    h_survivors=result.h_survivors,
                    peers=peers,
                    layout=run.payload_layout(manifest.kind),
                )
            )
        except SecAggRefusedError as error:
            message = f"the evidence for the sum does not verify ({error.reason.value})"
            raise _refused("sum-evidence-invalid", message, manifest) from error
        await self._reexecute(run, manifest, published, reexecution=reexecution, total=total)
        return tuple(reexecution.sites)

    async def _reexecute(
        self,
        run: ApprovedRun,
        manifest: RoundManifest,
        published: PublishedResult,
        *,
        reexecution: Reexecution,
        total: RingVector,
    ) -> None:
        layout = run.payload_layout(manifest.kind)
        mode = await asyncio.to_thread(self._seams.judge.sum_check_mode)
        if mode is SumCheckMode.WHOLE:
            chunks = every_chunk(layout)
        else:
            chunks = sampled_chunks(self._seed(published), layout, n_sites=len(reexecution.sites))
        for chunk in chunks:
            window = reexecution.window_of(chunk)
            try:
                await self._check_window(published, reexecution, window, total=total)
            except (CoordinatorRefusedError, _ChunkWithheldError) as error:
                if isinstance(error, CoordinatorRefusedError) and error.facts.get("status") not in _WITHHOLDS:
                    raise
                message = "the coordinator does not show a chunk that its sum is made of"
                raise _refused("sum-evidence-withheld", message, manifest) from error
            except (SumFalseError, ChunkInvalidError) as error:
                await self._record(
                    AuditKind.SUM_REFUSED, published, reason=error.code, chunk=chunk, n_sites=len(reexecution.sites)
                )
                self._note_false(published)
                message = f"the published sum is not what the sites uploaded (chunk {chunk}: {error.code})"
                raise _refused("sum-false", message, manifest) from error
        await self._record(
            AuditKind.SUM_CHECKED,
            published,
            by="reexecution",
            chunks_checked=len(chunks),
            chunks=reexecution.n_chunks,
            n_sites=len(reexecution.sites),
            sites=",".join(reexecution.sites),
        )

    async def _check_window(
        self, published: PublishedResult, reexecution: Reexecution, window: ChunkWindow, *, total: RingVector
    ) -> None:
        window_sum = reexecution.begin(window)
        context, client = published.exchange, self._seams.client
        shown = client.get_masked_window(
            context.run_id, context.round_index, of_sites=reexecution.sites, chunks=window.chunks
        )
        async with aclosing(shown):
            for site in reexecution.sites:
                chunks = [await _next_chunk(shown, site, index) for index in window.chunks]
                await asyncio.to_thread(window_sum.add, site, chunks)
        await asyncio.to_thread(window_sum.compare, total)

    def _note_false(self, published: PublishedResult) -> None:
        self._known_false[_body_sha256(published)] = None
        while len(self._known_false) > _MOST_KNOWN_FALSE:
            self._known_false.popitem(last=False)

    def _seed(self, published: PublishedResult) -> bytes:
        # Deterministic (RFC 6979) and unknown to all others: after a failed call or a restart the draw is the same.
        # Over M10's body: the coordinator could make a second signature, and would have a second draw.
        signed = sign_body(self._seams.signer, _SAMPLE_KIND, _body_sha256(published))
        return hkdf(signed.signature, salt=b"", info=pack(b"WR/sum-sample"))

    async def _count_witnesses(
        self,
        run: ApprovedRun,
        manifest: RoundManifest,
        published: PublishedResult,
        witnesses: Sequence[SumWitness],
    ) -> None:
        acted_at = await asyncio.to_thread(self._seams.book.last_act_at, round_of(published.exchange))
        if not _has_window_closed(manifest, self._seams.clock.now(), acted_at=acted_at):
            message = "the coordinator shows no evidence for its sum although the round's audit window is open"
            raise _refused("sum-evidence-withheld", message, manifest)
        colluders = await asyncio.to_thread(self._seams.judge.assumed_colluders)
        found = {
            witness.site_id
            for witness in witnesses
            if witness.site_id != self._seams.site_id and _is_witness(witness, run, published)
        }
        # One more than may lie: then one of them did the check, or had the same result as one who did.
        if len(found) <= colluders:
            message = "the evidence for the sum is gone, and too few sites stand for the result"
            raise _refused("sum-unwitnessed", message, manifest, n_witnesses=len(found), n_needed=colluders + 1)
        await self._record(AuditKind.SUM_CHECKED, published, by="witnesses", n_witnesses=len(found))

    async def _record(self, kind: AuditKind, published: PublishedResult, **facts: str | int) -> None:
        await asyncio.to_thread(self._seams.book.record_event, kind, round_of(published.exchange), **facts)


async def _next_chunk(shown: AsyncIterator[ShownChunk], site: SiteId, index: int) -> MaskedChunk:
    """The next of a window, which has to be this one. Raises _ChunkWithheldError."""
    found = await anext(shown, None)
    if found is None or (found.site_id, found.chunk_index) != (site, index):
        raise _ChunkWithheldError
    return found.chunk


def _body_sha256(published: PublishedResult) -> bytes:
    return hashlib.sha256(SignedBody.decode(published.message).body).digest()


def _has_window_closed(manifest: RoundManifest, now: datetime, *, acted_at: datetime | None) -> bool:
    """Whether the evidence may be gone. The window counts from the round's end, which is later than both instants.

    Safety: when the round opened is the coordinator's word, and a day back it would close every window at once. When
    this site last did something in it is not; and a run that names no window leaves time to ask all the same.
    """
    began = datetime.fromisoformat(manifest.opened_at)
    latest = began if acted_at is None else max(began, acted_at)
    return now >= latest + timedelta(seconds=max(manifest.audit_window_s, _SHORTEST_WINDOW_S))


def _is_witness(witness: SumWitness, run: ApprovedRun, published: PublishedResult) -> bool:
    """Whether a site of the approved cohort signed that it folded this very result."""
    try:
        if run.spec.cohort.pins.get(witness.site_id) != spki_fingerprint(witness.signing_spki):
            return False
        body = verify_body(witness.signing_spki, ACKNOWLEDGEMENT_KIND, witness.acknowledgement)
        run_id, round_index, result, _ = unpack(body, 4)
    except (ProtocolError, PackedBytesInvalidError):
        return False
    context = published.exchange
    expected = (context.run_id.encode(), u32(context.round_index), hashlib.sha256(published.message).digest())
    return (run_id, round_index, result) == expected


def _refused(reason: str, message: str, manifest: RoundManifest, **facts: int) -> RoundRefusedError:
    return RoundRefusedError(message, reason=reason, run_id=manifest.run_id, round_index=manifest.round_index, **facts)
