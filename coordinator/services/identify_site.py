"""Who is behind a client certificate, asked on every call: a revoked site is refused by its next one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.db.models import Certificate, Site
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import CertificateUnknownError
from coordinator.services.resources import Resources
from coordinator.services.site_presence import is_note_due, note_seen
from fl_protocol.ids import SiteId


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
        certificate = session.get(Certificate, certificate_sha256)
        site = session.get(Site, site_id)
        if certificate is None or site is None or certificate.site_id != site_id:
            raise CertificateUnknownError("this certificate was not issued by this coordinator; enrol again")
        if site.state != SiteState.ENROLLED.value:
            raise SiteNotActiveError(
                f"this site is {site.state}; ask the consortium's admin", site_id=site_id, state=site.state
            )
        if certificate.revoked_at is not None or certificate.not_after <= now:
            raise CertificateUnknownError("this certificate has ended; enrol again", site_id=site_id)
        return is_note_due(site, now=now)

    if resources.db.read("identify_site", check):
        resources.db.run_tx("note_site_seen", lambda session: note_seen(session, site_id, now=now))
    return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)
