"""Suspend, resume and revoke a site. Its next call finds the new state; the certificate need not expire first."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Certificate
from coordinator.db.states import SiteState
from coordinator.services.invite_site import end_codes
from coordinator.services.refusals import RequestInvalidError, StateConflictError
from coordinator.services.resources import Resources
from coordinator.services.show_sites import SiteView, find_site, site_view
from coordinator.services.site_statements import forget_statements
from fl_protocol.audit.events import AuditKind


class SiteChange(StrEnum):
    """What may be done to a site."""

    SUSPEND = "suspend"
    RESUME = "resume"
    REVOKE = "revoke"


_TARGETS: Mapping[SiteChange, SiteState] = {
    SiteChange.SUSPEND: SiteState.SUSPENDED,
    SiteChange.RESUME: SiteState.ENROLLED,
    SiteChange.REVOKE: SiteState.REVOKED,
}
_SOURCES: Mapping[SiteChange, frozenset[SiteState]] = {
    SiteChange.SUSPEND: frozenset({SiteState.ENROLLED}),
    SiteChange.RESUME: frozenset({SiteState.SUSPENDED}),
    SiteChange.REVOKE: frozenset({SiteState.INVITED, SiteState.ENROLLED, SiteState.SUSPENDED}),
}
_KINDS: Mapping[SiteChange, AuditKind] = {
    SiteChange.SUSPEND: AuditKind.SITE_SUSPENDED,
    SiteChange.RESUME: AuditKind.SITE_RESUMED,
    SiteChange.REVOKE: AuditKind.SITE_REVOKED,
}


def change_site_state(
    resources: Resources, *, site_id: str, change: SiteChange, reason: str | None, actor: str
) -> SiteView:
    """Change a site's state; a change that has been made already changes nothing.

    Raises:
        NotFoundError: there is no such site.
        RequestInvalidError: a suspension or a revocation has no reason, or one of more than 500 characters.
        StateConflictError: this state does not lead there.
    """
    now = resources.now()
    said = (reason or "").strip()
    if len(said) > 500 or (change is not SiteChange.RESUME and not said):
        raise RequestInvalidError("say the reason, in at most 500 characters", change=change.value)

    def apply(session: Session) -> SiteView:
        site = find_site(session, site_id)
        if site.state == _TARGETS[change].value:
            return site_view(site)
        if SiteState(site.state) not in _SOURCES[change]:
            raise StateConflictError(
                f"a site that is {site.state} cannot be changed by {change.value}", site_id=site_id, state=site.state
            )
        site.state = _TARGETS[change].value
        site.reason = said or None
        if change is SiteChange.RESUME:
            # Whoever speaks first now is believed, whatever its number: an admin has looked.
            forget_statements(session, site_id)
        if change is SiteChange.REVOKE:
            end_codes(session, site_id, now=now)
            for certificate in session.scalars(select(Certificate).where(Certificate.site_id == site_id)):
                certificate.revoked_at = certificate.revoked_at or now
        session.flush()
        facts = {"site_id": site_id, "reason": said or None}
        append_audit(session, _KINDS[change], actor=actor, facts=facts, now=now)
        return site_view(site)

    view = resources.db.run_tx("change_site_state", apply)
    resources.forget_identities()
    resources.wake_driver()
    return view
