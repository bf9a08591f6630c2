"""Runs as a site sees them: those that wait for its word, what they say, and who else is in them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from coordinator.db.models import Approval, Run, Site
from coordinator.db.runs import EXPIRY_MARGIN, approved_sites
from coordinator.db.states import SiteState
from coordinator.errors import NotFoundError
from coordinator.rounds.run_machine import RunState
from coordinator.services.resources import Resources
from coordinator.services.run_specs import run_spec_of
from fl_protocol.ids import RunId, SiteId

_OPEN_STATES = (RunState.AWAITING_SITES.value, RunState.ACTIVE.value, RunState.PAUSED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRun:
    """A run's head line."""

    run_id: str
    name: str
    run_spec_sha256: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRunDetail:
    """A run with the exact bytes that the site checks and approves."""

    run: SiteRun
    run_spec_json: bytes
    adapter_layout_json: bytes
    initial_state_blob_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterMember:
    """A site of the cohort: its pinned key, its word, and whether it was revoked since."""

    site_id: str
    signing_key_sha256: str
    is_approved: bool
    is_revoked: bool


def list_pending_runs(resources: Resources, *, site_id: SiteId) -> tuple[SiteRun, ...]:
    """The open runs whose cohort has this site and on which it has not said a word, or whose approval has ended."""
    now = resources.now()

    def read(session: Session) -> tuple[SiteRun, ...]:
        stands = or_(Approval.expires_at.is_(None), Approval.expires_at > now + EXPIRY_MARGIN)
        answered = select(Approval.run_id).where(Approval.site_id == site_id, stands)
        query = select(Run).where(Run.state.in_(_OPEN_STATES), Run.run_id.not_in(answered)).order_by(Run.created_at)
        return tuple(_head(run) for run in session.scalars(query) if _is_in_cohort(run, site_id))

    return resources.db.read("list_pending_runs", read)


def get_run_for_site(resources: Resources, *, site_id: SiteId, run_id: RunId) -> SiteRunDetail:
    """A run's documents.

    Raises:
        NotFoundError: there is no such run for this site.
    """

    def read(session: Session) -> SiteRunDetail:
        run = _run_of(session, site_id, run_id)
        return SiteRunDetail(
            run=_head(run),
            run_spec_json=run.run_spec_json,
            adapter_layout_json=run.layout_json,
            initial_state_blob_sha256=run.initial_blob_sha256,
        )

    return resources.db.read("get_run_for_site", read)


def get_roster(resources: Resources, *, site_id: SiteId, run_id: RunId) -> tuple[RosterMember, ...]:
    """The cohort of a run, sorted by name.

    Raises:
        NotFoundError: there is no such run for this site.
    """

    def read(session: Session) -> tuple[RosterMember, ...]:
        run = _run_of(session, site_id, run_id)
        approved = approved_sites(session, run_id, now=resources.now())
        members = []
        for name, pin in sorted(run_spec_of(run.run_spec_json).cohort.pins.items()):
            site = session.get(Site, name)
            is_revoked = site is None or site.state == SiteState.REVOKED.value
            members.append(
                RosterMember(site_id=name, signing_key_sha256=pin, is_approved=name in approved, is_revoked=is_revoked)
            )
        return tuple(members)

    return resources.db.read("get_roster", read)


def _run_of(session: Session, site_id: SiteId, run_id: RunId) -> Run:
    run = session.get(Run, run_id)
    # A run of others is, for this site, no run: who takes part in what is not its business.
    if run is None or run.state == RunState.DRAFT.value or not _is_in_cohort(run, site_id):
        raise NotFoundError("there is no such run for this site", run_id=run_id)
    return run


def _is_in_cohort(run: Run, site_id: SiteId) -> bool:
    return site_id in run_spec_of(run.run_spec_json).cohort.pins


def _head(run: Run) -> SiteRun:
    return SiteRun(run_id=run.run_id, name=run.name, run_spec_sha256=run.run_spec_sha256, state=run.state)
