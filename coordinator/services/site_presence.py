"""When a site was last heard of, noted cheaply: a site asks several times a minute, and one note in 30 s is enough."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.models import Site
from fl_protocol.ids import SiteId

_NOTE_EVERY = timedelta(seconds=30)


def is_note_due(last_seen_at: datetime | None, *, now: datetime) -> bool:
    """Whether the site's note is so old that a new one is written."""
    return last_seen_at is None or now - last_seen_at >= _NOTE_EVERY


def note_seen(session: Session, site_id: SiteId, *, now: datetime) -> None:
    """Note that the site was heard of; an instant never goes back."""
    site = session.get(Site, site_id)
    if site is not None and (site.last_seen_at is None or site.last_seen_at < now):
        site.last_seen_at = now
