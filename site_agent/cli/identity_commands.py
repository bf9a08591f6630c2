"""``wardround-site identity``: who this site is, until when its certificate lives, and a new one at once."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Annotated

import typer

from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_pem
from fl_protocol.signing.keys import spki_fingerprint
from site_agent.cli.console import SiteConsole, console_of, local_user
from site_agent.cli.enrol_command import agent_version
from site_agent.cli.open_site import open_site
from site_agent.db.instants import instant_text
from site_agent.durable_files import write_whole
from site_agent.enrolment.identity_file import SiteIdentity, load_identity
from site_agent.enrolment.renewal import renewal_instant
from site_agent.errors import CoordinatorUnavailableError, StateDirectoryLockedError
from site_agent.identity_keeping import Author, renew_once
from site_agent.settings import load_settings
from site_agent.state.directory_lock import DirectoryLock

identity_app = typer.Typer(no_args_is_help=True, help="Who this site is.")

_LOOK_EVERY_S = 0.25


@identity_app.command()
def show(context: typer.Context) -> None:
    """Show this site's name, key fingerprint and certificate dates; read the fingerprint to other sites by telephone.

    And the keys of the coordinator as this site pinned them, for 'wardround audit verify --key'.

    Example: wardround-site identity show
    """
    console = console_of(context)
    with open_site(console) as site:
        identity = site.identity
    _answer(console, identity, now=console.clock.now())


@identity_app.command()
def renew(
    context: typer.Context,
    wait_s: Annotated[float, typer.Option("--wait", min=1, help="How long a running agent may take, in seconds.")] = 90,
) -> None:
    """Get a new certificate for a new TLS key now; an agent that runs does it. The signing key stays.

    Example: wardround-site identity renew
    """
    console = console_of(context)
    settings = load_settings(console.folder.root)
    before = load_identity(console.folder)
    lock = DirectoryLock(settings.state_dir)
    try:
        lock.acquire()
    except StateDirectoryLockedError:
        renewed = _by_the_agent(console, before, wait_s=wait_s)
    else:
        try:
            author = Author(actor=f"user:{local_user()}", agent_version=agent_version())
            renewed = asyncio.run(renew_once(settings, clock=console.clock, author=author))
        finally:
            lock.release()
    _answer(console, renewed, now=console.clock.now())


def _by_the_agent(console: SiteConsole, before: SiteIdentity, *, wait_s: float) -> SiteIdentity:
    """Leave a wish, and wait until the agent that runs has granted it."""
    console.say("The agent runs; it renews.")
    write_whole(console.folder.renewal_wish, b"")
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        identity = load_identity(console.folder)
        if identity.certificate_pem != before.certificate_pem:
            return identity
        time.sleep(_LOOK_EVERY_S)
    console.folder.renewal_wish.unlink(missing_ok=True)
    raise CoordinatorUnavailableError("the agent has not renewed yet; its log says why, and it goes on trying")


def _answer(console: SiteConsole, identity: SiteIdentity, *, now: datetime) -> None:
    certificate = certificate_from_pem(identity.certificate_pem)
    renews_at = renewal_instant(certificate, 0.5)
    # What signs the coordinator's log, receipts and results; `wardround audit verify --key` holds a log against it.
    coordinator_key = spki_fingerprint(identity.coordinator_signing_spki)
    has_ended = certificate.not_valid_after_utc <= now
    document = {
        "site_id": identity.site_id,
        "signing_key_sha256": identity.signing_key_sha256,
        "coordinator_signing_key_sha256": coordinator_key,
        "root_sha256": identity.root_sha256,
        "gateway_address": identity.gateway_address,
        "enrolment_address": identity.enrolment_address,
        "enrolled_at": instant_text(identity.enrolled_at),
        "certificate_sha256": certificate_fingerprint(certificate),
        "certificate_not_before": instant_text(certificate.not_valid_before_utc),
        "certificate_not_after": instant_text(certificate.not_valid_after_utc),
        "certificate_renews_at": instant_text(renews_at),
        "certificate_has_ended": has_ended,
    }
    ends = "ended" if has_ended else "valid until"
    console.answer(
        document,
        f"Site         {identity.site_id}",
        f"Signing key  {identity.signing_key_sha256}",
        f"Coordinator  {identity.gateway_address}",
        f"Its key      {coordinator_key}",
        f"Its root     {identity.root_sha256}",
        f"Certificate  {ends} {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
        f"the agent renews it around {renews_at:%Y-%m-%d %H:%M}",
    )
