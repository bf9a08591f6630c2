"""Epochs: the coordinator was restored from a backup, and what it said after the backup is lost to it, not to others.

A restore is a fact that is told: signed, in the log, to every site that polls. Until an admin has acknowledged it no
round opens, so that sites can first say how much of the log they had seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, audit_head, write_checkpoint
from coordinator.db.models import CoordinatorEpoch, EpochHead, Event, Exchange, Lease, OutboxEntry, Round
from coordinator.db.rounds import participations_of
from coordinator.errors import ConflictError, InvalidMessageError, NotFoundError
from coordinator.rounds.events import AbortReason, ExchangeFailure
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.round_machine import RoundState
from coordinator.services.context import EngineContext
from coordinator.services.effect_kinds import EffectKind
from coordinator.services.round_access import COORDINATOR, ref_of, round_facts, site_actor
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.audit.restored import RestoredStatement, sign_restored
from fl_protocol.ids import SiteId
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody

_FINAL_ROUNDS = tuple(state.value for state in RoundState if state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedHead:
    """How much of the log a site had seen before the restore."""

    site_id: str
    seen_size: int
    seen_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochView:
    """An epoch as people see it. ``n_lost``: rows that some site had seen and the backup did not hold."""

    epoch: int
    started_at: datetime
    backup_made_at: datetime
    restored_size: int
    restored_head: str
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    heads: tuple[ReportedHead, ...]

    @property
    def n_lost(self) -> int:
        """At least so many."""
        return max((head.seen_size - self.restored_size for head in self.heads), default=0)

    def sentence(self) -> str:
        """For people."""
        made = self.backup_made_at.isoformat(timespec="seconds")
        if not self.heads:
            return f"Was restored from the backup of {made}; no site has said yet what it saw after it."
        ahead = [head.site_id for head in self.heads if head.seen_size > self.restored_size]
        if not ahead:
            return f"Was restored from the backup of {made}; no site that reported had seen anything after it."
        return (
            f"Was restored from the backup of {made}; at least {self.n_lost} recorded events after it are lost here and"
            f" were seen by {', '.join(ahead)}."
        )


def current_epoch(session: Session) -> int:
    """How often this coordinator was restored."""
    return session.scalar(select(func.max(CoordinatorEpoch.epoch))) or 0


def latest_epoch(session: Session) -> CoordinatorEpoch | None:
    """The row of the present epoch; None before the first restore."""
    return session.scalars(select(CoordinatorEpoch).order_by(CoordinatorEpoch.epoch.desc()).limit(1)).one_or_none()


def unacknowledged_restore(session: Session) -> CoordinatorEpoch | None:
    """The present epoch, while an admin has still to acknowledge it."""
    row = latest_epoch(session)
    return row if row is not None and row.acknowledged_at is None else None


def restored_statement(session: Session) -> SignedBody | None:
    """What sites are told: the present epoch's statement."""
    row = latest_epoch(session)
    return None if row is None else SignedBody(body=row.statement_body, signature=row.statement_signature)


def show_epochs(session: Session) -> tuple[EpochView, ...]:
    """Every restore, in order."""
    rows = session.scalars(select(CoordinatorEpoch).order_by(CoordinatorEpoch.epoch)).all()
    return tuple(_view(session, row) for row in rows)


def begin_epoch(
    session: Session, *, epoch: int, backup_made_at: datetime, signer: Signer, origin: str, now: datetime
) -> RestoredStatement:
    """The first transaction of a restored coordinator: end what was under way, and say what happened.

    Every round that was open is ABORTED: its sites have gone on meanwhile, with attempts at exchanges, and reveals,
    that are unknown here. What waits to be read or performed for it is done with; a release that was asked for is not.

    Raises:
        ConflictError: the number does not rise.
    """
    if epoch <= current_epoch(session):
        raise ConflictError("an epoch's number rises", epoch=epoch, present=current_epoch(session))
    size, head = audit_head(session)
    for row in session.scalars(select(Round).where(Round.state.not_in(_FINAL_ROUNDS))).all():
        _abort(session, row, now=now)
    for event in session.scalars(select(Event).where(Event.consumed_at.is_(None))):
        event.consumed_at = now
    pending = select(OutboxEntry).where(
        OutboxEntry.done_at.is_(None), OutboxEntry.kind != EffectKind.CREATE_RELEASE.value
    )
    for entry in session.scalars(pending):
        entry.done_at, entry.last_error = now, "the coordinator was restored"
    for lease in session.scalars(select(Lease)):
        session.delete(lease)
    statement = RestoredStatement(
        origin=origin, epoch=epoch, size=size, head=head, backup_made_at=backup_made_at, at=now
    )
    signed = sign_restored(signer, statement)
    session.add(
        CoordinatorEpoch(
            epoch=epoch,
            started_at=now,
            backup_made_at=backup_made_at,
            restored_size=size,
            restored_head=head,
            statement_body=signed.body,
            statement_signature=signed.signature,
        )
    )
    session.flush()
    facts: dict[str, AuditFact] = {
        "epoch": epoch,
        "restored_size": size,
        "restored_head": head,
        "backup_made_at": backup_made_at.isoformat(),
    }
    append_audit(session, AuditKind.COORDINATOR_RESTORED, actor=COORDINATOR, facts=facts, now=now)
    write_checkpoint(session, signer=signer, origin=origin, now=now)
    return statement


def note_head(session: Session, site_id: SiteId, *, seen_size: int, seen_head: str, now: datetime) -> bool:
    """Keep how much of the log a site had seen before the present epoch; whether that is new."""
    row = latest_epoch(session)
    if row is None or seen_size <= 0:
        return False
    held = session.get(EpochHead, (row.epoch, site_id))
    if held is not None and held.seen_size >= seen_size:
        return False
    if held is None:
        held = EpochHead(epoch=row.epoch, site_id=site_id, seen_size=0, seen_head="", reported_at=now)
        session.add(held)
    held.seen_size, held.seen_head, held.reported_at = seen_size, seen_head, now
    session.flush()
    facts: dict[str, AuditFact] = {
        "epoch": row.epoch,
        "site_id": site_id,
        "seen_size": seen_size,
        "seen_head": seen_head,
    }
    append_audit(session, AuditKind.HEAD_REPORTED, actor=site_actor(site_id), facts=facts, now=now)
    return True


async def meet_site(
    ctx: EngineContext, site_id: SiteId, *, seen_size: int, seen_head: bytes, known_epoch: int
) -> SignedBody | None:
    """What a site that polls is told of the latest restore, and what is learnt from it; None where it knows already.

    Raises:
        InvalidMessageError: the head is none.
    """
    if len(seen_head) not in (0, 32):
        raise InvalidMessageError("the head of a log has 32 bytes", n_bytes=len(seen_head))

    def look(session: Session) -> tuple[int, SignedBody | None]:
        return current_epoch(session), restored_statement(session)

    if ctx.roles.restore is None:
        ctx.roles.restore = await ctx.db.read_async("latest-restore", look)
    epoch, statement = ctx.roles.restore
    if statement is None or known_epoch >= epoch:
        return None
    if seen_size:
        now, head = ctx.now(), seen_head.hex()
        await ctx.db.run_tx_async(
            "note-head", lambda session: note_head(session, site_id, seen_size=seen_size, seen_head=head, now=now)
        )
    return statement


def acknowledge_restore(session: Session, *, actor: str, now: datetime) -> EpochView:
    """An admin has seen what the restore lost, and lets runs go on. Again is the same.

    Raises:
        NotFoundError: this coordinator was never restored.
    """
    row = latest_epoch(session)
    if row is None:
        raise NotFoundError("this coordinator was never restored from a backup")
    if row.acknowledged_at is None:
        row.acknowledged_at, row.acknowledged_by = now, actor
        session.flush()
        view = _view(session, row)
        facts: dict[str, AuditFact] = {
            "epoch": row.epoch,
            "n_sites": len(view.heads),
            "n_lost": view.n_lost,
            "heads": ",".join(f"{head.site_id}:{head.seen_size}:{head.seen_head}" for head in view.heads),
        }
        append_audit(session, AuditKind.RESTORE_ACKNOWLEDGED, actor=actor, facts=facts, now=now)
    return _view(session, row)


def sites_ahead(session: Session, row: Round) -> Sequence[str]:
    """Sites that declined a round of a restored run because they are past it: they folded what is lost here."""
    return sorted(site_id for site_id, part in participations_of(session, row).items() if part.reason in _AHEAD_REASONS)


_AHEAD_REASONS = frozenset({"public-state-mismatch", "previous-result-mismatch", "attempt-not-rising"})
"""What a site answers to a round that starts from a state before its own."""


def _abort(session: Session, row: Round, *, now: datetime) -> None:
    row.state, row.reason, row.finished_at = RoundState.ABORTED.value, AbortReason.COORDINATOR_RESTORED.value, now
    key = (Exchange.run_id == row.run_id, Exchange.round_index == row.round_index)
    for exchange in session.scalars(select(Exchange).where(*key, Exchange.round_attempt == row.round_attempt)):
        if not ExchangeState(exchange.state).is_final:
            exchange.state, exchange.reason = ExchangeState.FAILED.value, ExchangeFailure.ROUND_ENDED.value
            exchange.finished_at = now
    session.flush()
    facts: dict[str, AuditFact] = {**round_facts(ref_of(row)), "reason": row.reason}
    append_audit(session, AuditKind.ROUND_ABORTED, actor=COORDINATOR, facts=facts, now=now)


def _view(session: Session, row: CoordinatorEpoch) -> EpochView:
    heads = session.scalars(select(EpochHead).where(EpochHead.epoch == row.epoch).order_by(EpochHead.site_id))
    return EpochView(
        epoch=row.epoch,
        started_at=row.started_at,
        backup_made_at=row.backup_made_at,
        restored_size=row.restored_size,
        restored_head=row.restored_head,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        heads=tuple(
            ReportedHead(site_id=head.site_id, seen_size=head.seen_size, seen_head=head.seen_head) for head in heads
        ),
    )
