"""Queries about sites, as the rounds need them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from coordinator.db.models import Site
from coordinator.db.states import SiteState
from fl_protocol.ids import SiteId


def active_sites(session: Session, names: Iterable[SiteId]) -> dict[SiteId, str]:
    """Those of ``names`` that are ENROLLED, with the fingerprint of their signing key."""
    query = select(Site.site_id, Site.signing_key_sha256).where(
        Site.site_id.in_(list(names)), Site.state == SiteState.ENROLLED.value
    )
    return {SiteId(site_id): key for site_id, key in session.execute(query) if key is not None}


def sites_by_name(session: Session, names: Iterable[SiteId]) -> dict[SiteId, Site]:
    """The rows of those of ``names`` that exist, whatever their state."""
    query = select(Site).where(Site.site_id.in_(list(names)))
    return {SiteId(row.site_id): row for row in session.scalars(query)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePresence:
    """A site's state, and when it was last heard of."""

    state: str
    last_seen_at: datetime | None


_PRESENCE = select(Site.site_id, Site.state, Site.last_seen_at).where(
    Site.site_id.in_(bindparam("names", expanding=True))
)


def presence_of_sites(session: Session, names: Iterable[SiteId]) -> dict[SiteId, SitePresence]:
    """Those of ``names`` that exist."""
    rows = session.execute(_PRESENCE, {"names": list(names)})
    return {
        SiteId(site_id): SitePresence(state=state, last_seen_at=last_seen_at) for site_id, state, last_seen_at in rows
    }
