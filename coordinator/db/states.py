"""States that only database and services speak about; those of run, round and exchange stand with their machines."""

from __future__ import annotations

from enum import StrEnum


class SiteState(StrEnum):
    """``INVITED -> ENROLLED <-> SUSPENDED -> REVOKED``."""

    INVITED = "INVITED"
    ENROLLED = "ENROLLED"
    SUSPENDED = "SUSPENDED"
    REVOKED = "REVOKED"


class ReleaseState(StrEnum):
    """``CANDIDATE -> APPROVED -> PUBLISHED -> WITHDRAWN``."""

    CANDIDATE = "CANDIDATE"
    APPROVED = "APPROVED"
    PUBLISHED = "PUBLISHED"
    WITHDRAWN = "WITHDRAWN"


class ApprovalDecision(StrEnum):
    """What a site said of a run."""

    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
