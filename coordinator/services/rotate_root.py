"""Replacing the root without an outage: who has heard of the next one, and who still shows one of the last.

1. PREPARED: the next root is named to every site, under the coordinator's signing key, at its next word.
2. SWITCHED: once every site whose certificate lives has said that it has it, the next one issues.
3. RETIRED: once no certificate of the last one lives, sites are told to forget it, and its key is erased.

A site that is away does not hold this up: its certificate ends, and it recovers by its signing key, whatever the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Certificate, Site
from coordinator.db.states import SiteState
from fl_protocol.audit.events import AuditFact, AuditKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RootChange:
    """What is about to be done, for the log."""

    kind: AuditKind
    root_sha256: str
    issuer_sha256: str
    version: int


def sites_that_have_not_heard(session: Session, *, version: int, now: datetime) -> tuple[str, ...]:
    """Sites with a certificate that lives, which have not said that they believe the roots of this version."""
    query = (
        select(Site.site_id)
        .join(Certificate, Certificate.site_id == Site.site_id)
        .where(*_lives(now))
        .where(or_(Site.trusted_roots_version.is_(None), Site.trusted_roots_version < version))
    )
    return tuple(sorted(set(session.scalars(query))))


def sites_under_other_roots(session: Session, *, root_sha256: str, now: datetime) -> tuple[str, ...]:
    """Sites with a certificate that lives and is of another root than this one."""
    query = (
        select(Site.site_id)
        .join(Certificate, Certificate.site_id == Site.site_id)
        .where(*_lives(now))
        .where(or_(Certificate.root_sha256.is_(None), Certificate.root_sha256 != root_sha256))
    )
    return tuple(sorted(set(session.scalars(query))))


def record_root_change(session: Session, change: RootChange, *, actor: str, now: datetime) -> None:
    """Write down a step, before it is taken: no record, no action."""
    facts: dict[str, AuditFact] = {
        "root_sha256": change.root_sha256,
        "issuer_sha256": change.issuer_sha256,
        "version": str(change.version),
    }
    append_audit(session, change.kind, actor=actor, facts=facts, now=now)


def _lives(now: datetime):  # type: ignore[no-untyped-def] # noqa: ANN202 # SQLAlchemy's conditions
    return (
        Site.state == SiteState.ENROLLED.value,
        Certificate.revoked_at.is_(None),
        Certificate.superseded_at.is_(None),
        Certificate.not_after > now,
    )
