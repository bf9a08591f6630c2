"""The effect FoldRound: sums of segments and the old public state give the new one, by the run's algorithm.

Every site computes the same from the published sum, and says so in its acknowledgement.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from coordinator.blobs.store import StoredBlob
from coordinator.db.exchanges import latest_exchange
from coordinator.db.models import Round, Run
from coordinator.db.outbox import take_open_effect
from coordinator.errors import NotFoundError
from coordinator.rounds.events import FoldRefused, RoundFolded
from coordinator.rounds.instructions import RoundRef
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.role_cache import RunFacts
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import read_sums
from fl_protocol.errors import ProtocolError
from fl_protocol.folds.algorithm import FoldResult
from fl_protocol.folds.public_state import PublicState
from fl_protocol.free_memory import give_back_free_memory
from fl_protocol.spec.round_spec import RoundKind

_log = structlog.get_logger("coordinator.services")


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoldInputs:
    """What the fold is computed from."""

    facts: RunFacts
    kind: RoundKind
    sum_blob_sha256: str
    state_blob_sha256: str
    n_counted: int


def fold_round(ctx: EngineContext, ref: RoundRef, *, effect_id: int) -> None:
    """Fold a round's sums and note the completion. Runs in a thread.

    Raises:
        NotFoundError, BlobNotFoundError: something that was stored is gone.
        BlobStoreFullError: no room for the new state; try again later.
    """
    inputs = ctx.db.read("fold-inputs", lambda session: _inputs(ctx, session, ref))
    folded: FoldResult | None = None
    blob: StoredBlob | None = None
    try:
        folded = _fold(ctx, inputs)
    except ProtocolError as error:
        # The sums were judged; what an algorithm refuses in them it will refuse again.
        _log.error("fold_refused", run_id=ref.run_id, round_index=ref.round_index, code=error.code, error=str(error))
    else:
        blob = ctx.blobs.put(folded.state.iter_bytes())
    now = ctx.now()
    ctx.db.run_tx(
        "complete-fold",
        lambda session: _complete(session, ref, folded=folded, blob=blob, effect_id=effect_id, now=now),
    )


def _inputs(ctx: EngineContext, session: Session, ref: RoundRef) -> _FoldInputs:
    row = session.get(Round, (ref.run_id, ref.round_index, ref.round_attempt))
    run = session.get(Run, ref.run_id)
    exchange = None if row is None else latest_exchange(session, row)
    if row is None or run is None or exchange is None or exchange.sum_blob_sha256 is None:
        raise NotFoundError("the round has no sum", run_id=ref.run_id, round_index=ref.round_index)
    return _FoldInputs(
        facts=ctx.roles.run_facts(run),
        kind=RoundKind(row.kind),
        sum_blob_sha256=exchange.sum_blob_sha256,
        state_blob_sha256=run.public_state_blob_sha256,
        n_counted=len(exchange.u3 or ()),
    )


def _fold(ctx: EngineContext, inputs: _FoldInputs) -> FoldResult:
    facts = inputs.facts
    layout = facts.payload(inputs.kind)
    give_back_free_memory()
    # Memory: the sum, over which the new state is written, and the old state; whatever the cohort.
    views = ctx.blobs.iter_views(inputs.sum_blob_sha256)
    vector = RingVector.from_chunks(views, n32=layout.n_ring32, n64=layout.n_ring64)
    sums = read_sums(vector, layout, n_sites=inputs.n_counted, is_given_up=True)
    state = PublicState.from_bytes(ctx.blobs.read(inputs.state_blob_sha256), is_shared=True)
    return facts.algorithm.fold(
        sums, state, spec=facts.spec, layout=facts.adapter, kind=inputs.kind, n_sites=inputs.n_counted
    )


def _complete(
    session: Session,
    ref: RoundRef,
    *,
    folded: FoldResult | None,
    blob: StoredBlob | None,
    effect_id: int,
    now: datetime,
) -> None:
    if not take_open_effect(session, effect_id, now=now):
        return
    if folded is None or blob is None:
        store_event(session, FoldRefused(), ref, now=now)
        return
    row = session.get(Round, (ref.run_id, ref.round_index, ref.round_attempt))
    assert row is not None, "the inputs came from this row"
    row.state_version_after = folded.state.version
    # A state is named by the digest of its bytes, and so is the blob that holds them.
    row.state_sha256_after = blob.sha256
    row.state_blob_sha256_after = blob.sha256
    row.report = asdict(folded.report)
    store_event(session, RoundFolded(), ref, now=now)
