"""From settings and identity to what keeps it alive. Part of the composition roots: daemon and ``identity renew``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.clock import Clock
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.enrolment.identity_file import SiteIdentity, load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import NetworkEnrolmentListener
from site_agent.enrolment.renewal import IdentityKeeper, Record, RenewalSeams
from site_agent.link.identity_calls import IdentityCalls
from site_agent.link.link_channel import LinkChannel
from site_agent.link.proxy import ProxyRoute, choose_proxy
from site_agent.settings import SiteSettings
from site_agent.supervision.seams import SystemEntropy
from site_agent.way_out import find_way_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who is written down as having renewed, and with which version."""

    actor: str
    agent_version: str


def recorder(db: SiteDb, audit: AuditLog, *, actor: str) -> Record:
    """Writes events of the identity, each in a transaction of its own."""

    def record(kind: AuditKind, facts: dict[str, AuditFact]) -> None:
        def append(session: Session) -> None:
            audit.append(session, kind, actor, **facts)

        db.run_tx("record_identity", append)

    return record


def identity_keeper(
    settings: SiteSettings,
    identity: SiteIdentity,
    *,
    channel: LinkChannel,
    clock: Clock,
    record: Record,
    agent_version: str,
) -> IdentityKeeper:
    """What keeps the identity of this folder alive over this link."""

    def proxy_for(target: str) -> ProxyRoute | None:
        return choose_proxy(
            settings.coordinator.proxy,
            target=target,
            credentials_file=settings.proxy_credentials_path,
            environment=os.environ,
        )

    def switch(renewed: SiteIdentity) -> None:
        channel.renew(find_way_out(settings, renewed, environment=os.environ).link_options())

    seams = RenewalSeams(
        folder=settings.folder,
        signer=KeyStore(settings.folder).load_signer(),
        clock=clock,
        entropy=SystemEntropy(),
        calls=IdentityCalls(channel),
        listener=NetworkEnrolmentListener(proxy_for=proxy_for),
        record=record,
        switch=switch,
        agent_version=agent_version,
        recovery_address=settings.coordinator.enrolment_address,
    )
    return IdentityKeeper(seams, identity)


async def renew_once(settings: SiteSettings, *, clock: Clock, author: Author) -> SiteIdentity:
    """Renew now, in a process of its own. The caller holds the folder's lock.

    Raises:
        LinkError, EnrolmentError: it did not come to that; what is in use stays in use.
    """
    identity = load_identity(settings.folder)
    options = find_way_out(settings, identity, environment=os.environ).link_options()
    channel = LinkChannel(options, clock_s=time.monotonic)
    db = open_site_db(settings.folder.database)
    try:
        audit = AuditLog(KeyStore(settings.folder).load_signer(), clock, origin_of_site(identity.site_id))
        keeper = identity_keeper(
            settings,
            identity,
            channel=channel,
            clock=clock,
            record=recorder(db, audit, actor=author.actor),
            agent_version=author.agent_version,
        )
        return await keeper.renew()
    finally:
        await channel.close()
        db.close()
