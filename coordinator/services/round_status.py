"""Rows as the machines see them, and back. The machines decide; this carries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.models import Exchange, Participation, Round, Site
from coordinator.db.states import SiteState
from coordinator.rounds.cohort import gone_sites, is_present
from coordinator.rounds.events import AbortReason, ExchangeFailure
from coordinator.rounds.exchange_machine import ExchangeState, ExchangeStatus, Sites
from coordinator.rounds.participation_machine import DropReason, ParticipationState
from coordinator.rounds.round_machine import RoundState, RoundStatus
from coordinator.services.role_cache import RoleCache
from fl_protocol.ids import SiteId

_ASKS_FOR_DEALT_QUORUM = frozenset({ExchangeState.COLLECTING, ExchangeState.CONFIRMING, ExchangeState.REVEALING})


def states_of(participations: Mapping[SiteId, Participation]) -> dict[SiteId, ParticipationState]:
    """Every site's state."""
    return {site: ParticipationState(row.state) for site, row in participations.items()}


def round_status(
    row: Round,
    exchange: Exchange | None,
    participations: Mapping[SiteId, Participation],
    sites: Mapping[SiteId, Site],
    *,
    now: datetime,
) -> RoundStatus:
    """The round as its machine sees it."""
    failed = exchange if exchange is not None and exchange.state == ExchangeState.FAILED.value else None
    silent = frozenset(site for site, part in participations.items() if _may_return(part))
    return RoundStatus(
        state=RoundState(row.state),
        participations=states_of(participations),
        deadline_at=row.deadline_at,
        exchange_index=0 if exchange is None else exchange.exchange_index,
        exchange_attempt=0 if exchange is None else exchange.exchange_attempt,
        exchange_failed_at=None if failed is None else failed.finished_at,
        exchange_failure=None if failed is None or failed.reason is None else ExchangeFailure(failed.reason),
        changed_at={site: part.updated_at for site, part in participations.items()},
        silent=silent,
        away=frozenset(
            site
            for site, part in participations.items()
            if not _is_here(sites.get(site), since=part.updated_at if site in silent else None, now=now)
        ),
        reason=None if row.reason is None else AbortReason(row.reason),
    )


def _may_return(row: Participation) -> bool:
    return (
        row.state == ParticipationState.DROPPED.value
        and row.reason in set(DropReason)
        and DropReason(row.reason).may_return
    )


def _is_here(site: Site | None, *, since: datetime | None, now: datetime) -> bool:
    """Whether the site may act and was heard of lately; of one that was given up, whether since then."""
    if site is None or site.state != SiteState.ENROLLED.value or not is_present(site.last_seen_at, now=now):
        return False
    return since is None or (site.last_seen_at is not None and site.last_seen_at > since)


def exchange_status(
    row: Exchange,
    participations: Mapping[SiteId, Participation],
    sites: Mapping[SiteId, Site],
    *,
    dealt_quorum: int = 0,
) -> ExchangeStatus:
    """The exchange as its machine sees it; for stepping it, ``dealt_quorum`` is what the function of that name says."""
    return ExchangeStatus(
        state=ExchangeState(row.state),
        invited=_sites(row.invited) or (),
        arrived=frozenset(_sites(row.arrived) or ()),
        gone=gone_sites(states_of(participations)),
        away=frozenset(site for site, found in sites.items() if found.state == SiteState.SUSPENDED.value),
        phase_deadline_at=row.phase_deadline_at,
        dealt_quorum=dealt_quorum,
        u1=_sites(row.u1),
        u2=_sites(row.u2),
        u3=_sites(row.u3),
        u4=_sites(row.u4),
        u5=_sites(row.u5),
        reason=None if row.reason is None else ExchangeFailure(row.reason),
    )


def store_exchange(row: Exchange, status: ExchangeStatus, *, now: datetime) -> None:
    """Write what the machine decided."""
    row.state = status.state.value
    row.reason = None if status.reason is None else status.reason.value
    row.arrived = sorted(status.arrived)
    row.phase_deadline_at = status.phase_deadline_at
    row.u1, row.u2, row.u3, row.u4, row.u5 = (
        None if sites is None else [str(site) for site in sites]
        for sites in (status.u1, status.u2, status.u3, status.u4, status.u5)
    )
    if status.state.is_final and row.finished_at is None:
        row.finished_at = now


def dealt_quorum(session: Session, roles: RoleCache, row: Exchange) -> int:
    """How many messages the dealers' own thresholds demand in this phase; 0 before shares were dealt."""
    state = ExchangeState(row.state)
    if state not in _ASKS_FOR_DEALT_QUORUM:
        return 0
    if state is ExchangeState.COLLECTING:
        return roles.shared(session, row).quorum
    return roles.surviving(session, row).quorum


def _sites(names: list[str] | None) -> Sites | None:
    return None if names is None else tuple(SiteId(name) for name in names)
