"""``wardround-site enrol``: from an empty folder to a site with an identity."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import Clock
from fl_protocol.signing.keys import Signer
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.cli.console import UsageError, console_of, local_user
from site_agent.db.tx import open_site_db
from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, ProxyChoice, enrol_site, fingerprint_from_text
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.enrolment.listener import EnrolmentTransport, NetworkEnrolmentListener
from site_agent.folder import SiteFolder
from site_agent.link.proxy import ProxyRoute, check_proxy_setting, choose_proxy
from site_agent.settings import SiteSettings, load_settings

_HTTP2_BROKEN = (
    "HTTP/2 does not come through to the coordinator, so HTTP/1.1 was used; the agent will choose it by itself too."
)
_NEXT = (
    "policy.yaml: say what this hospital permits (it permits nothing yet)",
    "site.yaml: say where base models lie, under base_models",
    "wardround-site datasets register FILE.yaml",
    "wardround-site peers add NAME SHA256, for each other site, compared by telephone",
    "wardround-site start",
)


def enrol(
    context: typer.Context,
    coordinator: Annotated[str, typer.Option("--coordinator", metavar="HOST:PORT", help="The enrolment listener.")],
    code: Annotated[
        str | None, typer.Option("--code", metavar="CODE", help="The one-time code from the invitation.")
    ] = None,
    code_file: Annotated[
        Path | None, typer.Option("--code-file", metavar="FILE", help="A file with the code, in the place of --code.")
    ] = None,
    root_fingerprint: Annotated[
        str | None,
        typer.Option("--root-fingerprint", metavar="SHA256", help="The coordinator's root, as you were told."),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy", metavar="URL", help="http://HOST:PORT, or 'none'; else https_proxy. Kept in site.yaml."
        ),
    ] = None,
    proxy_credentials_file: Annotated[
        Path | None,
        typer.Option("--proxy-credentials-file", metavar="FILE", help="user:password, mode 0600. Kept in site.yaml."),
    ] = None,
) -> None:
    """Give this folder an identity at a coordinator. Keys are made here and stay here.

    Example: wardround-site enrol --coordinator fl.example.org:8445 --code WR1-...-... --state-dir /var/lib/wardround
    """
    console = console_of(context)
    order = EnrolmentOrder(
        coordinator_address=coordinator,
        code=code_from_text(_code_text(code, code_file)),
        root_fingerprint=None if root_fingerprint is None else fingerprint_from_text(root_fingerprint),
        agent_version=agent_version(),
        proxy=ProxyChoice(url=proxy, credentials_file=proxy_credentials_file),
    )
    folder = console.folder
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def record(identity: SiteIdentity, signer: Signer) -> None:
        record_enrolment(folder, identity, signer, clock=console.clock)

    listener = NetworkEnrolmentListener(proxy_for=_proxies(folder, order.proxy))
    identity = enrol_site(folder, order, listener=listener, now=console.clock.now(), record=record)
    transport = listener.transport or EnrolmentTransport.GRPC
    document = {
        "site_id": identity.site_id,
        "signing_key_sha256": identity.signing_key_sha256,
        "root_sha256": identity.root_sha256,
        "gateway_address": identity.gateway_address,
        "transport": transport.value,
        "state_dir": str(folder.root),
        "next": list(_NEXT),
    }
    console.answer(
        document,
        f"Enrolled as {identity.site_id}.",
        *((_HTTP2_BROKEN,) if transport is EnrolmentTransport.HTTP1 else ()),
        "",
        "This site's signing key, for the other sites to compare by telephone:",
        f"  {identity.signing_key_sha256}",
        "The coordinator's root certificate:",
        f"  {identity.root_sha256}",
        "",
        f"Next, in {folder.root}:",
        *(f"  {number}. {step}" for number, step in enumerate(_NEXT, start=1)),
    )


def _code_text(code: str | None, file: Path | None) -> str:
    """The code as it was typed, or as its file has it: a command line is seen by every user of the machine."""
    if (code is None) == (file is None):
        raise UsageError("say the enrolment code once: --code CODE, or --code-file FILE")
    if code is not None:
        return code
    assert file is not None, "one of the two was given"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file with the enrolment code cannot be read: {file}") from error
    if not text:
        raise UsageError(f"the file with the enrolment code is empty: {file}")
    return text


def _proxies(folder: SiteFolder, chosen: ProxyChoice) -> Callable[[str], ProxyRoute | None]:
    """Which proxy leads where: as was typed now, else by ``site.yaml`` if it is there already, else the environment."""
    settings = load_settings(folder.root) if folder.site_yaml.exists() else SiteSettings.from_document(folder.root, {})
    if chosen.url is not None:
        check_proxy_setting(chosen.url)
    file = chosen.credentials_file or settings.proxy_credentials_path

    def proxy_for(target: str) -> ProxyRoute | None:
        return choose_proxy(
            chosen.url or settings.coordinator.proxy, target=target, credentials_file=file, environment=os.environ
        )

    return proxy_for


def record_enrolment(folder: SiteFolder, identity: SiteIdentity, signer: Signer, *, clock: Clock) -> None:
    """Write the audit log's first event. Raises SiteDatabaseError."""
    db = open_site_db(folder.database)
    try:
        audit = AuditLog(signer, clock, origin_of_site(identity.site_id))
        db.run_tx(
            "record_enrolment",
            lambda session: audit.append(
                session,
                AuditKind.ENROLMENT_COMPLETED,
                f"user:{local_user()}",
                site_id=identity.site_id,
                signing_key_sha256=identity.signing_key_sha256,
                root_sha256=identity.root_sha256,
            ),
        )
    finally:
        db.close()


def agent_version() -> str:
    """The installed version of Wardround."""
    try:
        return metadata.version("wardround")
    except metadata.PackageNotFoundError:
        return "unknown"
