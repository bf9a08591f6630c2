"""When a round's audit window closes, its masked uploads and the shares go. What was said and by whom stays.

What goes, and why it may:

- the **masked uploads** (blobs, and the part of an upload that never ended): with a later break of X25519 they would be
  what is unmasked;
- of **M3** the sealed shares and their commitments: shares of secrets that nobody needs any more. Its signed header
  stays, for the transcript root is over it;
- **M9** whole: shares in plain. Its leaf under the transcript root stays, so that the root can still be computed;
- the **sum** of an algorithm that publishes only its fold (decision 0046): a site that was absent until now gets it no
  more.

What stays: every row, digest, size and receipt; M0, M10, the transcript root; M1, M5's header, M7 and complaints, which
hold public keys, commitments to random secrets, digests and signatures; any other sum and the public states, which are
published to every site of the run and needed by one that was absent.

A round that was ABORTED and exchanges that FAILED go the same way. The window counts from the round's end, and closes
not before the run's next round is COMMITTED (decision 0022), or the run has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session, aliased

from coordinator.db.audit import append_audit
from coordinator.db.exchanges import context_of
from coordinator.db.models import Exchange, ExchangeMessage, Round, Run, Upload
from coordinator.db.rounds import open_round
from coordinator.rounds.events import MessageKind
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.round_machine import RoundState
from coordinator.rounds.run_machine import RunState
from coordinator.services.role_cache import RoleCache
from coordinator.services.round_access import COORDINATOR, ref_of, round_facts
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.codec.merkle import leaf_hash
from fl_protocol.folds.algorithm import Publishes
from fl_protocol.packing import pack, unpack
from fl_protocol.secagg.messages import StatementKind
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext

_FINAL_RUNS = tuple(state.value for state in RunState if state.is_final)
_FINAL_ROUNDS = tuple(state.value for state in RoundState if state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrubbed:
    """What a scrubbed round consisted of."""

    exchanges: tuple[ExchangeContext, ...]
    n_messages: int
    n_uploads: int


def rounds_to_scrub(session: Session, roles: RoleCache, *, now: datetime) -> tuple[RoundRef, ...]:
    """Ended rounds whose audit window has closed, in order."""
    later = aliased(Round)
    is_followed = exists().where(
        later.run_id == Round.run_id,
        later.state == RoundState.COMMITTED.value,
        # The round after a committed one; after an aborted attempt, the attempt at the same round that succeeded.
        (later.round_index > Round.round_index)
        | ((later.round_index == Round.round_index) & (Round.state == RoundState.ABORTED.value)),
    )
    query = (
        select(Round, Run)
        .join(Run, Run.run_id == Round.run_id)
        .where(
            Round.scrubbed_at.is_(None),
            Round.state.in_(_FINAL_ROUNDS),
            Round.finished_at.is_not(None),
            Round.finished_at <= now,
            Run.state.in_(_FINAL_RUNS) | is_followed,
        )
        .order_by(Round.run_id, Round.round_index, Round.round_attempt)
    )
    due = []
    for row, run in session.execute(query):
        window = timedelta(seconds=roles.run_facts(run).spec.secure_aggregation.audit_window_s)
        assert row.finished_at is not None, "the query asks for it"
        if row.finished_at + window <= now and _is_past(session, run):
            due.append(ref_of(row))
    return tuple(due)


def scrub_round(session: Session, ref: RoundRef, roles: RoleCache, *, now: datetime) -> Scrubbed | None:
    """Remove what must go from the rows, mark the uploads, record it. None where it was done before.

    The blobs are deleted after this transaction, by whoever finds an upload with ``scrubbed_at`` and no
    ``blob_deleted_at``: a crash in between loses nothing but time.
    """
    row = session.get(Round, (ref.run_id, ref.round_index, ref.round_attempt))
    if row is None or row.scrubbed_at is not None or not RoundState(row.state).is_final:
        return None
    exchanges = session.scalars(select(Exchange).where(*_of_round(Exchange, ref))).all()
    messages = session.scalars(select(ExchangeMessage).where(*_of_round(ExchangeMessage, ref))).all()
    uploads = session.scalars(select(Upload).where(*_of_round(Upload, ref))).all()
    n_messages = sum(_scrub_message(message, now=now) for message in messages)
    for upload in uploads:
        upload.scrubbed_at = now
    run = session.get(Run, ref.run_id)
    assert run is not None, "the round's row names it"
    is_sum_kept = roles.run_facts(run).algorithm.publishes is Publishes.SUM
    for exchange in exchanges:
        exchange.scrubbed_at = now
        if not is_sum_kept:
            # Its digest stays, as M10 has it; without a size it is a sum that nobody can be given.
            exchange.sum_bytes = None
    row.scrubbed_at = now
    session.flush()
    facts: dict[str, AuditFact] = {
        **round_facts(ref),
        "state": row.state,
        "n_exchanges": len(exchanges),
        "n_messages": n_messages,
        "n_uploads": len(uploads),
        "n_bytes": sum(upload.n_bytes for upload in uploads),
    }
    append_audit(session, AuditKind.ROUND_SCRUBBED, actor=COORDINATOR, facts=facts, now=now)
    contexts = tuple(context_of(exchange) for exchange in exchanges)
    return Scrubbed(exchanges=contexts, n_messages=n_messages, n_uploads=len(uploads))


def _scrub_message(message: ExchangeMessage, *, now: datetime) -> bool:
    match message.kind:
        case MessageKind.M3.value:
            # M3 is pack(signed header, leaf, leaf, ...).
            kept = unpack(message.encoded)[0]
        case MessageKind.M9.value:
            said = SignedBody.decode(message.encoded)
            leaf = pack(StatementKind.M9.encode(), said.body, said.signature)
            message.transcript_leaf_sha256 = leaf_hash(leaf).hex()
            kept = b""
        case _:
            return False
    message.n_bytes = len(message.encoded)
    message.encoded = kept
    message.scrubbed_at = now
    return True


def _is_past(session: Session, run: Run) -> bool:
    """Whether nothing of the run that is still open could need its ended rounds."""
    return run.state not in _FINAL_RUNS or open_round(session, run.run_id) is None


def _of_round(table: type[Exchange | ExchangeMessage | Upload], ref: RoundRef) -> tuple[ColumnElement[bool], ...]:
    return (
        table.run_id == ref.run_id,
        table.round_index == ref.round_index,
        table.round_attempt == ref.round_attempt,
    )
