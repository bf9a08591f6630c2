"""Who is behind a client certificate, asked on every call: a revoked site is refused by its next one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from coordinator.db.models import Certificate, Site
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import CertificateUnknownError
from coordinator.services.resources import Resources
from coordinator.services.site_presence import is_note_due, note_seen
from fl_protocol.ids import SiteId

_CALLER = (
    select(Certificate.site_id, Certificate.revoked_at, Certificate.not_after, Site.state, Site.last_seen_at)
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
        CertificateUnknownError: it was not issued here, is another site's, or has ended.
        SiteNotActiveError: the site is suspended or revoked.
    """
    now = resources.now()

    def check(session: Session) -> bool:
        found = session.execute(_CALLER, {"sha256": certificate_sha256}).one_or_none()
        if found is None or found.site_id != site_id:
            raise CertificateUnknownError("this certificate was not issued by this coordinator; enrol again")
        if found.state != SiteState.ENROLLED.value:
            raise SiteNotActiveError(
                f"this site is {found.state}; ask the consortium's admin", site_id=site_id, state=found.state
            )
        if found.revoked_at is not None or found.not_after <= now:
            raise CertificateUnknownError("this certificate has ended; enrol again", site_id=site_id)
        return is_note_due(found.last_seen_at, now=now)

    if resources.db.read("identify_site", check):
        resources.db.run_tx("note_site_seen", lambda session: note_seen(session, site_id, now=now))
    return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)
