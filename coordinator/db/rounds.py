"""Queries about rounds and participations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, exists, select
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, Participation, Round, Site
from coordinator.db.states import ApprovalDecision
from fl_protocol.ids import SiteId

_ENDED = ("COMMITTED", "ABORTED")


def open_round(session: Session, run_id: str) -> Round | None:
    """The run's round that has not ended; there is at most one."""
    query = select(Round).where(Round.run_id == run_id, Round.state.not_in(_ENDED))
    return session.scalars(query).one_or_none()


def latest_round(session: Session, run_id: str) -> Round | None:
    """The latest attempt at the latest round."""
    query = (
        select(Round)
        .where(Round.run_id == run_id)
        .order_by(Round.round_index.desc(), Round.round_attempt.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()


def ended_attempts(session: Session, run_id: str, round_index: int) -> Sequence[Round]:
    """The attempts at that round that were ABORTED, in order."""
    query = (
        select(Round)
        .where(Round.run_id == run_id, Round.round_index == round_index, Round.state == "ABORTED")
        .order_by(Round.round_attempt)
    )
    return session.scalars(query).all()


def committed_round(session: Session, run_id: str, round_index: int) -> Round | None:
    """The attempt at that round that was committed."""
    query = select(Round).where(Round.run_id == run_id, Round.round_index == round_index, Round.state == "COMMITTED")
    return session.scalars(query).one_or_none()


def participations_of(session: Session, round_row: Round) -> dict[SiteId, Participation]:
    """Every invited site's row, by name."""
    query = (
        select(Participation)
        .where(
            Participation.run_id == round_row.run_id,
            Participation.round_index == round_row.round_index,
            Participation.round_attempt == round_row.round_attempt,
        )
        .order_by(Participation.site_id)
    )
    return {SiteId(row.site_id): row for row in session.scalars(query)}


_SAME_ROUND = (
    (Round.run_id == Participation.run_id)
    & (Round.round_index == Participation.round_index)
    & (Round.round_attempt == Participation.round_attempt)
)
_SITE_IN_ROUND = (
    select(Site, Round, Participation)
    .join(Site, Site.site_id == Participation.site_id)
    .join(Round, _SAME_ROUND)
    .where(
        Participation.run_id == bindparam("run_id"),
        Participation.round_index == bindparam("round_index"),
        Participation.round_attempt == bindparam("round_attempt"),
        Participation.site_id == bindparam("site_id"),
    )
)
"""One statement and not three: every message of a site asks this."""


def find_site_in_round(
    session: Session, site_id: SiteId, round_key: tuple[str, int, int]
) -> tuple[Site, Round, Participation] | None:
    """The rows of a site that was invited to the round of that primary key; None where one of them is missing."""
    named = dict(zip(("run_id", "round_index", "round_attempt"), round_key, strict=True))
    found = session.execute(_SITE_IN_ROUND, {**named, "site_id": site_id}).one_or_none()
    return None if found is None else (found[0], found[1], found[2])


def is_anybody_training(session: Session, round_key: tuple[str, int, int]) -> bool:
    """Whether a site that was invited to the round has neither a payload nor left it."""
    run_id, round_index, round_attempt = round_key
    query = (
        select(Participation.site_id)
        .where(
            Participation.run_id == run_id,
            Participation.round_index == round_index,
            Participation.round_attempt == round_attempt,
            Participation.state.in_(("INVITED", "TRAINING")),
        )
        .limit(1)
    )
    return session.scalars(query).first() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """A round and one site's part in it, as far as tells what the site should do."""

    site_id: SiteId
    run_id: str
    round_index: int
    round_attempt: int
    state: str
    reason: str | None
    participation_state: str
    participation_reason: str | None
    acknowledged_at: datetime | None

    @classmethod
    def of(cls, round_row: Round, row: Participation) -> SiteRound:
        """Of the two rows."""
        return cls(
            site_id=SiteId(row.site_id),
            run_id=round_row.run_id,
            round_index=round_row.round_index,
            round_attempt=round_row.round_attempt,
            state=round_row.state,
            reason=round_row.reason,
            participation_state=row.state,
            participation_reason=row.reason,
            acknowledged_at=row.acknowledged_at,
        )


_HAS_WITHDRAWN = exists().where(
    Approval.run_id == Participation.run_id,
    Approval.site_id == Participation.site_id,
    Approval.decision == ApprovalDecision.WITHDRAWN.value,
)
_IS_RESULT_DUE = (Round.state == "COMMITTED") & Participation.acknowledged_at.is_(None) & ~_HAS_WITHDRAWN
_ROUNDS_OF_SITES = (
    select(
        Participation.site_id,
        Round.run_id,
        Round.round_index,
        Round.round_attempt,
        Round.state,
        Round.reason,
        Participation.state.label("participation_state"),
        Participation.reason.label("participation_reason"),
        Participation.acknowledged_at,
    )
    .join(Round, _SAME_ROUND)
    .where(
        Participation.site_id.in_(bindparam("names", expanding=True)),
        Round.state.not_in(_ENDED) | _IS_RESULT_DUE,
    )
)


def rounds_of_sites(session: Session, names: Iterable[SiteId]) -> Sequence[SiteRound]:
    """Rounds that may ask something of these sites: open ones, and committed ones that they have not acknowledged.

    A site that withdrew from a run is counted where its update was in the sum already; it takes no result of that run.
    """
    rows = session.execute(_ROUNDS_OF_SITES, {"names": list(names)})
    return [SiteRound(**row) for row in rows.mappings()]
