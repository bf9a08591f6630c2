"""The effect ComputeSum: add the uploads of U3, remove the masks, judge the sum, store it and sign it.

Performed again after a crash it stores the same blob under the same name and signs the same bytes; only the first
completion is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.aggregation.accumulator import RingAccumulator
from coordinator.aggregation.gates import Implausible, judge_sum
from coordinator.blobs.store import StoredBlob
from coordinator.db.exchanges import find_exchange, find_upload, messages_of, participation_in
from coordinator.db.models import Exchange
from coordinator.db.outbox import take_open_effect
from coordinator.errors import NotFoundError
from coordinator.rounds.events import ExchangeFailure, MessageKind, SumComputed, SumRefused
from coordinator.rounds.participation_machine import ParticipationEvent, RejectReason
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.round_access import COORDINATOR, audit_participation, move_participation
from fl_protocol.free_memory import give_back_free_memory
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import SurvivingCohort, make_m10, recover_mask_terms, transcript_root
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SumInputs:
    """What the sum is computed from, all of it frozen."""

    surviving: SurvivingCohort
    uploads: tuple[str, ...]
    m7s: Mapping[SiteId, bytes]
    m9s: Mapping[SiteId, bytes]

    @property
    def layout(self) -> PayloadLayout:
        """The payload's layout."""
        return self.surviving.shared.keyed.opened.layout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    """A sum that is stored, and the coordinator's word on it."""

    blob: StoredBlob
    m10: SignedBody
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """There is no sum, or none that can be believed."""

    failure: ExchangeFailure
    blamed: SiteId | None = None


def aggregate_round(ctx: EngineContext, context: ExchangeContext, *, effect_id: int) -> None:
    """Compute the sum of an exchange and note its completion. Runs in a thread.

    Raises:
        NotFoundError, BlobNotFoundError: something that was stored is gone.
        BlobStoreFullError: no room for the sum; try again later.
        VectorLengthError: a stored upload is not as long as the layout says.
    """
    inputs = ctx.db.read("sum-inputs", lambda session: _inputs(ctx, session, context))
    outcome = _compute(ctx, inputs)
    now = ctx.now()
    ctx.db.run_tx(
        "complete-sum",
        lambda session: _complete(session, context, outcome, effect_id=effect_id, now=now),
    )


def _inputs(ctx: EngineContext, session: Session, context: ExchangeContext) -> SumInputs:
    exchange = _require(session, context)
    surviving = ctx.roles.surviving(session, exchange)
    uploads: list[str] = []
    for site in surviving.sites:
        upload = find_upload(session, context, site)
        if upload is None or upload.blob_sha256 is None:
            raise NotFoundError("a survivor's upload is gone", site_id=site, run_id=context.run_id)
        uploads.append(upload.blob_sha256)
    return SumInputs(
        surviving=surviving,
        uploads=tuple(uploads),
        m7s=messages_of(session, context, kind=MessageKind.M7, sites=exchange.u4),
        m9s=messages_of(session, context, kind=MessageKind.M9, sites=exchange.u5),
    )


def _compute(ctx: EngineContext, inputs: SumInputs) -> _Signed | _Refused:
    try:
        terms = recover_mask_terms(inputs.surviving, inputs.m9s)
    except SecAggRefusedError as refusal:
        return _Refused(failure=ExchangeFailure.UNMASKING_REFUSED, blamed=refusal.blamed)

    give_back_free_memory()
    accumulator = RingAccumulator(n_ring32=inputs.layout.n_ring32, n_ring64=inputs.layout.n_ring64)
    for sha256 in inputs.uploads:
        accumulator.add(ctx.blobs.iter_views(sha256, chunk_bytes=_CHUNK_BYTES))
    _run_all(accumulator.mask_removals(terms, ctx.n_threads), n_threads=ctx.n_threads)
    vector = accumulator.vector
    if isinstance(judge_sum(vector, inputs.layout, n_counted=len(inputs.uploads)), Implausible):
        return _Refused(failure=ExchangeFailure.IMPLAUSIBLE_SUM)
    blob = ctx.blobs.put(vector.iter_chunks(_CHUNK_BYTES))
    root = transcript_root(inputs.surviving, inputs.m7s, inputs.m9s)
    m10 = make_m10(inputs.surviving, ctx.signer, result_sha256=bytes.fromhex(blob.sha256), transcript_root=root)
    return _Signed(blob=blob, m10=SignedBody.decode(m10), root=root)


def _run_all(work: Sequence[Callable[[], None]], *, n_threads: int) -> None:
    """Run every piece, on all cores: the cipher and numpy release the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="unmask") as pool:
        for done in [pool.submit(piece) for piece in work]:
            done.result()


def _complete(
    session: Session, context: ExchangeContext, outcome: _Signed | _Refused, *, effect_id: int, now: datetime
) -> None:
    if not take_open_effect(session, effect_id, now=now):
        return
    exchange = _require(session, context)
    match outcome:
        case _Signed():
            exchange.sum_blob_sha256 = outcome.blob.sha256
            exchange.sum_bytes = outcome.blob.n_bytes
            exchange.transcript_root = outcome.root.hex()
            exchange.result_body, exchange.result_signature = outcome.m10.body, outcome.m10.signature
            store_event(session, SumComputed(), context, now=now)
        case _Refused():
            store_event(session, SumRefused(reason=outcome.failure), context, now=now)
            if outcome.blamed is not None:
                _reject(session, context, outcome.blamed, now=now)


def _reject(session: Session, context: ExchangeContext, site_id: SiteId, *, now: datetime) -> None:
    row = participation_in(session, context, site_id)
    assert row is not None, "a member of U1 takes part in the round"
    move_participation(row, ParticipationEvent.BLAMED, now=now, reason=RejectReason.SECRET_FALSE.value)
    audit_participation(session, row, actor=COORDINATOR, now=now)


def _require(session: Session, context: ExchangeContext) -> Exchange:
    exchange = find_exchange(session, context)
    if exchange is None:
        raise NotFoundError("there is no such exchange", run_id=context.run_id, round_index=context.round_index)
    return exchange
