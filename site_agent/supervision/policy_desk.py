"""The policy file as the agent uses it: read at every question, and each new version recorded before it counts.

A file that was changed holds from the next question on, without a restart. One that is broken or gone permits nothing
(decision 0034): the version before it is not kept in force, since whoever changed the file meant it to hold no more.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from fl_protocol.audit.events import AuditFact, AuditKind
from site_agent.audit.store import AuditLog
from site_agent.db.tx import SiteDb
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy_file import PolicyVersion, load_policy_version

log = structlog.get_logger(__name__)

_ACTOR = "agent"
_LOADED, _UNREADABLE = "loaded", "unreadable"


class PolicyDesk:
    """One policy file. Usable from any thread; all methods block on the disk."""

    def __init__(self, path: Path, *, db: SiteDb, audit: AuditLog) -> None:
        """Nothing is read yet."""
        self._path = path
        self._db = db
        self._audit = audit
        self._lock = threading.Lock()
        self._recorded: tuple[str, str | None] | None = None

    def load(self) -> PolicyVersion:
        """The policy as the file says it now.

        Raises:
            PolicyFaultsError: nothing is permitted; all faults are listed.
            SiteDatabaseError: a new version could not be recorded, so it does not count.
        """
        try:
            version = load_policy_version(self._path)
        except PolicyFaultsError as error:
            self._record(_UNREADABLE, error.file_sha256, n_faults=len(error.faults))
            raise
        self._record(_LOADED, version.sha256)
        return version

    def _record(self, outcome: str, sha256: str | None, **facts: AuditFact) -> None:
        with self._lock:
            if self._recorded == (outcome, sha256):
                return
            self._db.run_tx(
                "record-policy",
                lambda session: self._audit.append(
                    session, AuditKind.POLICY_LOADED, _ACTOR, outcome=outcome, policy_sha256=sha256, **facts
                ),
            )
            self._recorded = (outcome, sha256)
        log.info("policy_loaded", outcome=outcome, policy_sha256=sha256)
