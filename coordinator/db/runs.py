"""Queries about runs and their approvals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

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


EXPIRY_MARGIN = timedelta(minutes=2)
"""An approval that ends within this time counts as ended. The site itself decides, by its own clock, and clocks differ:
a site that was invited a moment too late would decline, and cost the others an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteWord:
    """What a site said last of a run, and whether that was a yes which has ended."""

    decision: str
    has_expired: bool

    @property
    def is_yes(self) -> bool:
        """Whether its standing word is yes."""
        return self.decision == ApprovalDecision.APPROVED.value and not self.has_expired


def site_words(session: Session, run_id: str, *, now: datetime) -> dict[SiteId, SiteWord]:
    """What each site that said something said last."""
    query = select(Approval.site_id, Approval.decision, Approval.expires_at).where(Approval.run_id == run_id)
    return {
        SiteId(site_id): SiteWord(decision=decision, has_expired=has_expired(expires_at, now=now))
        for site_id, decision, expires_at in session.execute(query)
    }


def has_expired(expires_at: datetime | None, *, now: datetime) -> bool:
    """Whether an approval has ended, or is about to."""
    return expires_at is not None and expires_at <= now + EXPIRY_MARGIN


def approved_sites(session: Session, run_id: str, *, now: datetime) -> frozenset[SiteId]:
    """Sites whose standing word on the run is yes. An approval that has ended is none."""
    return frozenset(site for site, word in site_words(session, run_id, now=now).items() if word.is_yes)
