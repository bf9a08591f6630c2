"""Runs as people see them: state, reason, what is waited for, who has approved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, Release, Round, Run
from coordinator.errors import NotFoundError
from coordinator.rounds.round_machine import RoundState
from coordinator.rounds.run_machine import RunState
from coordinator.services.describe_run import waiting_for
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.refusals import RequestInvalidError
from coordinator.services.resources import Resources
from coordinator.services.run_specs import run_spec_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalView:
    """What a site said of a run."""

    site_id: str
    decision: str
    at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run. ``rounds_total`` counts the evaluation round that ends it.

    ``waiting_for`` is ``waits_for`` under the name that clients of 0.1 read.
    """

    run_id: str
    name: str
    state: str
    reason: str | None
    waits_for: str
    waiting_for: str
    run_spec_sha256: str
    run_spec: Mapping[str, object]
    rounds_total: int
    rounds_committed: int
    approvals: tuple[ApprovalView, ...]
    releases: tuple[str, ...]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def list_runs(resources: Resources, page: PageRequest, *, state: str | None = None) -> Page[RunView]:
    """All runs, by identifier.

    Raises:
        RequestInvalidError: ``state`` is no state of a run.
    """
    if state is not None and state not in set(RunState):
        raise RequestInvalidError(f"a run's state is one of {', '.join(RunState)}", state=state[:80])
    now = resources.now()

    def read(session: Session) -> list[tuple[str, RunView]]:
        query = select(Run).order_by(Run.run_id).limit(page.limit + 1)
        if state is not None:
            query = query.where(Run.state == state)
        if page.after is not None:
            query = query.where(Run.run_id > page.after)
        return [(run.run_id, run_view(session, run, now=now)) for run in session.scalars(query)]

    return page_from(resources.db.read("list_runs", read), page)


def show_run(resources: Resources, run_id: str) -> RunView:
    """One run.

    Raises:
        NotFoundError: there is no such run.
    """
    now = resources.now()
    return resources.db.read("show_run", lambda session: run_view(session, find_run(session, run_id), now=now))


def find_run(session: Session, run_id: str) -> Run:
    """The row of a run.

    Raises:
        NotFoundError: there is none.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("there is no such run", run_id=run_id[:80])
    return run


def _approval(row: Approval) -> ApprovalView:
    return ApprovalView(site_id=row.site_id, decision=row.decision, at=row.at, expires_at=row.expires_at)


def run_view(session: Session, run: Run, *, now: datetime) -> RunView:
    """What of a run is shown."""
    spec = run_spec_of(run.run_spec_json)
    approvals = session.scalars(select(Approval).where(Approval.run_id == run.run_id).order_by(Approval.site_id))
    committed = select(func.count(func.distinct(Round.round_index))).where(
        Round.run_id == run.run_id, Round.state == RoundState.COMMITTED.value
    )
    releases = select(Release.release_id).where(Release.run_id == run.run_id).order_by(Release.created_at)
    sentence = waiting_for(session, run, now)
    return RunView(
        run_id=run.run_id,
        name=run.name,
        state=run.state,
        reason=run.reason,
        waits_for=sentence,
        waiting_for=sentence,
        run_spec_sha256=run.run_spec_sha256,
        run_spec=json.loads(run.run_spec_json),
        rounds_total=spec.rounds + 1,
        rounds_committed=session.scalar(committed) or 0,
        approvals=tuple(_approval(row) for row in approvals),
        releases=tuple(session.scalars(releases)),
        created_by=run.created_by,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )
