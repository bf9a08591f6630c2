"""What became of a release's sources: an ancestor that was withdrawn, a dataset that a site took out of use.

A mark changes no state and takes nothing back. It is written once, in the transaction of its cause, for the release and
for everything that was made from it, however far down; whoever lists, shows or signs a release is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import DatasetWithdrawal, Exchange, Release, ReleaseMark, ReleaseParent, Round, Run
from coordinator.db.states import ReleaseState
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.round_machine import RoundState
from coordinator.services.run_specs import run_spec_of
from fl_protocol.audit.events import AuditKind
from fl_protocol.spec.round_spec import RoundKind

_CLOCKS_DIFFER_BY = timedelta(minutes=10)
"""A site dates its withdrawal by its own clock. One mark too many can be explained; one too few is not seen."""


class MarkKind(StrEnum):
    """What happened."""

    ANCESTOR_WITHDRAWN = "ancestor-withdrawn"
    DATASET_WITHDRAWN = "dataset-withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One thing that happened: ``cause`` is the ancestor's identifier, or ``site/dataset@instant``."""

    kind: MarkKind
    cause: str
    reason: str


def mark_descendants(session: Session, release: Release, *, reason: str, now: datetime) -> int:
    """Mark everything that was made from a withdrawn release; returns how many were marked now."""
    mark = Mark(kind=MarkKind.ANCESTOR_WITHDRAWN, cause=release.release_id, reason=reason)
    below = descendants_of(session, release.release_id)
    return sum(_mark(session, release_id, mark, now=now) for release_id in below)


def mark_users_of_dataset(session: Session, withdrawal: DatasetWithdrawal, *, now: datetime) -> int:
    """Mark every release that a withdrawn dataset went into, and what was made from those; how many were marked now."""
    n_marked = 0
    for release_id in session.scalars(select(Release.release_id).order_by(Release.release_id)).all():
        run_id = session.get_one(Release, release_id).run_id
        if has_used(session, run_id, withdrawal):
            marked = (release_id, *descendants_of(session, release_id))
            n_marked += sum(_mark(session, one, _mark_of(withdrawal), now=now) for one in marked)
    return n_marked


def mark_new_release(session: Session, release: Release, parents: Iterable[str], *, now: datetime) -> None:
    """What happened to a release's sources before it was made: its run's datasets, its parents and their marks."""
    withdrawals = session.scalars(select(DatasetWithdrawal).order_by(DatasetWithdrawal.withdrawn_at)).all()
    marks = [_mark_of(one) for one in withdrawals if has_used(session, release.run_id, one)]
    for parent_id in parents:
        parent = session.get_one(Release, parent_id)
        if parent.state == ReleaseState.WITHDRAWN.value:
            reason = parent.withdrawn_reason or ""
            marks.append(Mark(kind=MarkKind.ANCESTOR_WITHDRAWN, cause=parent_id, reason=reason))
        inherited = marks_of(session, parent_id)
        marks.extend(Mark(kind=MarkKind(row.kind), cause=row.cause, reason=row.reason) for row in inherited)
    for mark in marks:
        _mark(session, release.release_id, mark, now=now)


def has_used(session: Session, run_id: str, withdrawal: DatasetWithdrawal) -> bool:
    """Whether the site was counted in a training round of this run that opened before it withdrew the dataset."""
    run = session.get_one(Run, run_id)
    if run_spec_of(run.run_spec_json).data.dataset != withdrawal.dataset:
        return False
    query = (
        select(Exchange.u3)
        .join(
            Round,
            (Round.run_id == Exchange.run_id)
            & (Round.round_index == Exchange.round_index)
            & (Round.round_attempt == Exchange.round_attempt),
        )
        .where(
            Exchange.run_id == run_id,
            Exchange.state == ExchangeState.SUMMED.value,
            Round.state == RoundState.COMMITTED.value,
            Round.kind == RoundKind.TRAIN.value,
            Round.opened_at <= withdrawal.withdrawn_at + _CLOCKS_DIFFER_BY,
        )
    )
    return any(withdrawal.site_id in (u3 or ()) for u3 in session.scalars(query))


def descendants_of(session: Session, release_id: str) -> tuple[str, ...]:
    """Everything that was made from a release, directly or not, each once; sorted."""
    found: set[str] = set()
    to_visit = [release_id]
    while to_visit:
        parent = to_visit.pop()
        query = select(ReleaseParent.release_id).where(ReleaseParent.parent_release_id == parent)
        children = set(session.scalars(query)) - found - {release_id}
        found |= children
        to_visit.extend(children)
    return tuple(sorted(found))


def parents_of(session: Session, release_id: str) -> tuple[str, ...]:
    """The releases from whose adapters this one's run began; sorted."""
    query = select(ReleaseParent.parent_release_id).where(ReleaseParent.release_id == release_id)
    return tuple(sorted(session.scalars(query)))


def marks_of(session: Session, release_id: str) -> tuple[ReleaseMark, ...]:
    """A release's marks, the oldest first."""
    query = select(ReleaseMark).where(ReleaseMark.release_id == release_id)
    return tuple(session.scalars(query.order_by(ReleaseMark.at, ReleaseMark.kind, ReleaseMark.cause)))


def _mark_of(withdrawal: DatasetWithdrawal) -> Mark:
    cause = f"{withdrawal.site_id}/{withdrawal.dataset}@{withdrawal.withdrawn_at.isoformat()}"
    return Mark(kind=MarkKind.DATASET_WITHDRAWN, cause=cause[:255], reason=withdrawal.reason)


def _mark(session: Session, release_id: str, mark: Mark, *, now: datetime) -> bool:
    if session.get(ReleaseMark, (release_id, mark.kind.value, mark.cause)) is not None:
        return False
    session.add(ReleaseMark(release_id=release_id, kind=mark.kind.value, cause=mark.cause, reason=mark.reason, at=now))
    session.flush()
    facts = {"release_id": release_id, "mark": mark.kind.value, "cause": mark.cause, "reason": mark.reason[:500]}
    append_audit(session, AuditKind.RELEASE_MARKED, actor="coordinator", facts=facts, now=now)
    return True
