"""``wardround-site enrol``: from an empty folder to a site with an identity."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import Clock
from fl_protocol.signing.keys import Signer
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.cli.console import console_of, local_user
from site_agent.db.tx import open_site_db
from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, enrol_site, fingerprint_from_text
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.enrolment.listener import GrpcEnrolmentListener
from site_agent.folder import SiteFolder

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
    code: Annotated[str, typer.Option("--code", metavar="CODE", help="The one-time code from the invitation.")],
    root_fingerprint: Annotated[
        str | None,
        typer.Option("--root-fingerprint", metavar="SHA256", help="The coordinator's root, as you were told."),
    ] = None,
) -> None:
    """Give this folder an identity at a coordinator. Keys are made here and stay here.

    Example: wardround-site enrol --coordinator fl.example.org:8445 --code WR1-...-... --state-dir /var/lib/wardround
    """
    console = console_of(context)
    order = EnrolmentOrder(
        coordinator_address=coordinator,
        code=code_from_text(code),
        root_fingerprint=None if root_fingerprint is None else fingerprint_from_text(root_fingerprint),
        agent_version=agent_version(),
    )
    folder = console.folder
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def record(identity: SiteIdentity, signer: Signer) -> None:
        record_enrolment(folder, identity, signer, clock=console.clock)

    identity = enrol_site(folder, order, listener=GrpcEnrolmentListener(), now=console.clock.now(), record=record)
    document = {
        "site_id": identity.site_id,
        "signing_key_sha256": identity.signing_key_sha256,
        "root_sha256": identity.root_sha256,
        "gateway_address": identity.gateway_address,
        "state_dir": str(folder.root),
        "next": list(_NEXT),
    }
    console.answer(
        document,
        f"Enrolled as {identity.site_id}.",
        "",
        "This site's signing key, for the other sites to compare by telephone:",
        f"  {identity.signing_key_sha256}",
        "The coordinator's root certificate:",
        f"  {identity.root_sha256}",
        "",
        f"Next, in {folder.root}:",
        *(f"  {number}. {step}" for number, step in enumerate(_NEXT, start=1)),
    )


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
