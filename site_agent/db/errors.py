"""What can go wrong with the site's database file."""

from __future__ import annotations

from site_agent.errors import SiteAgentError


class SiteDatabaseError(SiteAgentError):
    """The database cannot be opened, read or written. No record, no action: what wanted it must stop."""

    code = "site-database-failed"


class SiteDatabaseVersionError(SiteDatabaseError):
    """The file was written by a version with another set of tables."""

    code = "site-database-version"


class SiteDatabaseFullError(SiteDatabaseError):
    """There is no room for it on the disk. Nothing was written; the same again is right once there is."""

    code = "site-disk-full"
