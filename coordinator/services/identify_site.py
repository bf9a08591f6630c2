"""Who is behind a client certificate, asked on every call: a revoked site is refused by its next one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from coordinator.db.models import Certificate, Site
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import CertificateEndedError, CertificateUnknownError
from coordinator.services.resources import Resources
from coordinator.services.site_presence import is_note_due, note_seen
from fl_protocol.ids import SiteId

SUPERSEDED_GRACE = timedelta(seconds=60)
"""For calls that were on their way over the old certificate when the new one came into use."""

_CALLER = (
    select(
        Certificate.site_id,
        Certificate.revoked_at,
        Certificate.not_after,
        Certificate.first_used_at,
        Certificate.superseded_at,
        Site.state,
        Site.last_seen_at,
    )
    .join(Site, Site.site_id == Certificate.site_id)
    .where(Certificate.fingerprint_sha256 == bindparam("sha256"))
)
"""Columns and not rows: it is asked at every call of every site, twenty times a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallingSite:
    """A site whose certificate and state were checked for this call."""

    site_id: SiteId
    certificate_sha256: str


def identify_site(resources: Resources, *, site_id: SiteId, certificate_sha256: str) -> CallingSite:
    """Check that the certificate is one that lives and that its site is ENROLLED.

    Raises:
        CertificateUnknownError: it was not issued here, is another site's, or was revoked.
        CertificateEndedError: it has expired, or another one came into its place.
        SiteNotActiveError: the site is suspended or revoked.
    """
    now = resources.now()

    def check(session: Session) -> tuple[bool, bool]:
        found = session.execute(_CALLER, {"sha256": certificate_sha256}).one_or_none()
        if found is None or found.site_id != site_id:
            raise CertificateUnknownError("this certificate was not issued by this coordinator; enrol again")
        if found.state != SiteState.ENROLLED.value:
            raise SiteNotActiveError(
                f"this site is {found.state}; ask the consortium's admin", site_id=site_id, state=found.state
            )
        if found.revoked_at is not None:
            raise CertificateUnknownError("this certificate was revoked; ask the consortium's admin", site_id=site_id)
        if found.not_after <= now:
            raise CertificateEndedError("this certificate has expired; renew it by the signing key", site_id=site_id)
        if found.superseded_at is not None and found.superseded_at + SUPERSEDED_GRACE <= now:
            raise CertificateEndedError("this certificate was replaced by a later one", site_id=site_id)
        return is_note_due(found.last_seen_at, now=now), found.first_used_at is None

    def note(session: Session) -> None:
        note_seen(session, site_id, now=now)
        if is_first_use:
            _note_first_use(session, site_id, certificate_sha256, now=now)

    is_due, is_first_use = resources.db.read("identify_site", check)
    if is_due or is_first_use:
        resources.db.run_tx("note_site_seen", note)
    return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)


def _note_first_use(session: Session, site_id: str, certificate_sha256: str, *, now: datetime) -> None:
    """A certificate came into use: those that the site had before it end. One that was issued since stays."""
    used = session.get(Certificate, certificate_sha256)
    if used is None or used.first_used_at is not None:
        return
    used.first_used_at = now
    session.flush()
    session.execute(
        update(Certificate)
        .where(
            Certificate.site_id == site_id,
            Certificate.fingerprint_sha256 != certificate_sha256,
            Certificate.superseded_at.is_(None),
            Certificate.not_before <= used.not_before,
        )
        .values(superseded_at=now)
    )
