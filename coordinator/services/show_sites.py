"""Sites as people see them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Site
from coordinator.errors import NotFoundError
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.resources import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site: who it is, whether it may take part, when it was last heard of."""

    site_id: str
    state: str
    reason: str | None
    signing_key_sha256: str | None
    agent_version: str | None
    created_at: datetime
    enrolled_at: datetime | None
    last_seen_at: datetime | None


def site_view(row: Site) -> SiteView:
    """What of a row is shown."""
    return SiteView(
        site_id=row.site_id,
        state=row.state,
        reason=row.reason,
        signing_key_sha256=row.signing_key_sha256,
        agent_version=row.agent_version,
        created_at=row.created_at,
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
    )


def list_sites(resources: Resources, page: PageRequest) -> Page[SiteView]:
    """All sites, by name."""

    def read(session: Session) -> list[tuple[str, SiteView]]:
        query = select(Site).order_by(Site.site_id).limit(page.limit + 1)
        if page.after is not None:
            query = query.where(Site.site_id > page.after)
        return [(row.site_id, site_view(row)) for row in session.scalars(query)]

    return page_from(resources.db.read("list_sites", read), page)


def show_site(resources: Resources, site_id: str) -> SiteView:
    """One site.

    Raises:
        NotFoundError: there is none of this name.
    """
    return resources.db.read("show_site", lambda session: site_view(find_site(session, site_id)))


def find_site(session: Session, site_id: str) -> Site:
    """The row of a site.

    Raises:
        NotFoundError: there is none of this name.
    """
    row = session.get(Site, site_id)
    if row is None:
        raise NotFoundError("there is no such site", site_id=site_id[:80])
    return row
