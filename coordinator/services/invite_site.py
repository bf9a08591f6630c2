"""An admin names a new site and gets a one-time code for its engineer. The name is never given to another site."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.ca.enrolment import SECRET_BYTES, EnrolmentCode, certificate_pin
from coordinator.db import models
from coordinator.db.audit import append_audit
from coordinator.db.states import SiteState
from coordinator.services.refusals import SiteExistsError
from coordinator.services.resources import Resources
from coordinator.services.show_sites import SiteView, site_view
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId, site_id_from_text
from fl_protocol.pki.tls import certificate_from_pem, der_from_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What the admin hands to the site out of band; the code is told this once."""

    site: SiteView
    code: str = field(repr=False)
    enrolment_address: str
    root_fingerprint: str
    expires_at: datetime

    @property
    def command(self) -> str:
        """The line that the site's engineer types."""
        return (
            f"wardround-site enrol --coordinator {self.enrolment_address} --code {self.code}"
            f" --root-fingerprint {self.root_fingerprint}"
        )


def invite_site(resources: Resources, *, name: str, actor: str) -> Invitation:
    """Make a code for a site; for one that has not enrolled yet the earlier codes end.

    Raises:
        IdentifierInvalidError: the name is no site name.
        SiteExistsError: a site of this name has enrolled, now or ever.
    """
    site_id = site_id_from_text(name)
    now = resources.now()
    expires_at = now + timedelta(seconds=resources.code_lifetime_s)
    pin = certificate_pin(der_from_certificate(certificate_from_pem(resources.enrolment_certificate_pem)))
    code = EnrolmentCode(secret=secrets.token_bytes(SECRET_BYTES), certificate_pin=pin)

    def invite(session: Session) -> SiteView:
        site = _invited_site(session, site_id, now=now)
        session.add(
            models.EnrolmentCode(
                code_sha256=code.secret_sha256,
                site_id=site_id,
                created_at=now,
                created_by=actor,
                expires_at=expires_at,
                used_at=None,
                used_by_key_sha256=None,
            )
        )
        session.flush()
        facts = {"site_id": site_id, "expires_at": expires_at.isoformat()}
        append_audit(session, AuditKind.SITE_INVITED, actor=actor, facts=facts, now=now)
        return site_view(site)

    return Invitation(
        site=resources.db.run_tx("invite_site", invite),
        code=code.text(),
        enrolment_address=resources.addresses.enrolment,
        root_fingerprint=resources.authority.root_sha256,
        expires_at=expires_at,
    )


def end_codes(session: Session, site_id: str, *, now: datetime) -> None:
    """Mark every open code of a site as spent by nobody."""
    query = select(models.EnrolmentCode).where(
        models.EnrolmentCode.site_id == site_id, models.EnrolmentCode.used_at.is_(None)
    )
    for row in session.scalars(query):
        row.used_at = now


def _invited_site(session: Session, site_id: SiteId, *, now: datetime) -> models.Site:
    site = session.get(models.Site, site_id)
    if site is None:
        site = models.Site(
            site_id=site_id,
            state=SiteState.INVITED.value,
            reason=None,
            signing_spki=None,
            signing_key_sha256=None,
            agent_version=None,
            created_at=now,
            enrolled_at=None,
            last_seen_at=None,
        )
        session.add(site)
        session.flush()
    elif site.state != SiteState.INVITED.value:
        raise SiteExistsError(
            "this name belongs to a site already and is never given again", site_id=site_id, state=site.state
        )
    end_codes(session, site_id, now=now)
    return site
