"""Opens what an enrolled site's commands work on: settings, identity, keys, database, audit log. A composition root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from fl_protocol.signing.keys import EcdsaSigner
from site_agent.approvals.approve_run import Judgement
from site_agent.approvals.ledger import site_ledger_for
from site_agent.approvals.run_records import RunRecord, find_run
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.cli.console import SiteConsole
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.enrolment.identity_file import SiteIdentity, load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.policy_file import load_policy_version
from site_agent.settings import SiteSettings, load_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSite:
    """An enrolled site, open for one command."""

    settings: SiteSettings
    identity: SiteIdentity
    signer: EcdsaSigner
    db: SiteDb
    audit: AuditLog

    @property
    def origin(self) -> str:
        """The audit log's name."""
        return origin_of_site(self.identity.site_id)

    def judge(self, run_id: str, *, now: datetime) -> tuple[RunRecord, Judgement]:
        """A run, and what it is judged by: the policy as it is now, and what the site knows now.

        Raises:
            RunUnknownError, RunDocumentInvalidError: there is no such run, or it is not what it says.
            PolicyFaultsError: the policy cannot be read.
        """
        version = load_policy_version(self.settings.policy_path)

        def read(session: Session) -> tuple[RunRecord, Judgement]:
            record = find_run(session, run_id)
            ledger = site_ledger_for(
                session,
                run_spec=record.run.run_spec(),
                layout_json=record.run.layout_json,
                identity=self.identity,
                peers=self.settings.peers,
                now=now,
            )
            return record, Judgement(policy=version.policy, ledger=ledger, policy_sha256=version.sha256)

        return self.db.run_read("judge_run", read)


@contextmanager
def open_site(console: SiteConsole) -> Iterator[OpenSite]:
    """Open the enrolled site of the console's folder.

    Raises:
        NotEnrolledError, SettingsInvalidError, KeyMissingError, KeyPermissionsError, SiteDatabaseError.
    """
    identity = load_identity(console.folder)
    settings = load_settings(console.folder.root)
    signer = KeyStore(console.folder).load_signer()
    db = open_site_db(console.folder.database)
    try:
        audit = AuditLog(signer, console.clock, origin_of_site(identity.site_id))
        yield OpenSite(settings=settings, identity=identity, signer=signer, db=db, audit=audit)
    finally:
        db.close()
