"""Queries about rounds and participations."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Participation, Round
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


def rounds_of_site(session: Session, site_id: SiteId) -> Sequence[tuple[Round, Participation]]:
    """Rounds that may ask something of the site: open ones, and committed ones that it has not acknowledged."""
    on = (
        (Round.run_id == Participation.run_id)
        & (Round.round_index == Participation.round_index)
        & (Round.round_attempt == Participation.round_attempt)
    )
    query = (
        select(Round, Participation)
        .join(Participation, on)
        .where(
            Participation.site_id == site_id,
            Round.state.not_in(_ENDED) | ((Round.state == "COMMITTED") & Participation.acknowledged_at.is_(None)),
        )
    )
    return [(round_row, row) for round_row, row in session.execute(query)]
