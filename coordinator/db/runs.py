"""Queries about runs and their approvals."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, Event, OutboxEntry, Round, Run
from coordinator.db.states import ApprovalDecision
from fl_protocol.ids import RunId, SiteId

_LIVE_RUNS = ("AWAITING_SITES", "ACTIVE", "PAUSED")
_ENDED_ROUNDS = ("COMMITTED", "ABORTED")


_TO_DRIVE = (
    select(Run.run_id)
    .where(
        or_(
            Run.state.in_(_LIVE_RUNS),
            exists().where(Event.run_id == Run.run_id, Event.consumed_at.is_(None)),
            exists().where(OutboxEntry.run_id == Run.run_id, OutboxEntry.done_at.is_(None)),
            exists().where(Round.run_id == Run.run_id, Round.state.not_in(_ENDED_ROUNDS)),
        )
    )
    .order_by(Run.created_at, Run.run_id)
)


def runs_to_drive(session: Session) -> Sequence[RunId]:
    """Runs that a driver must look at: live ones, and ended ones with something left to do."""
    return [RunId(run_id) for run_id in session.scalars(_TO_DRIVE)]


def approval_decisions(session: Session, run_id: str) -> dict[SiteId, str]:
    """What each site that said something said last."""
    query = select(Approval.site_id, Approval.decision).where(Approval.run_id == run_id)
    return {SiteId(site_id): decision for site_id, decision in session.execute(query)}


def approved_sites(session: Session, run_id: str) -> frozenset[SiteId]:
    """Sites whose standing word on the run is yes."""
    query = select(Approval.site_id).where(
        Approval.run_id == run_id, Approval.decision == ApprovalDecision.APPROVED.value
    )
    return frozenset(SiteId(site_id) for site_id in session.scalars(query))
