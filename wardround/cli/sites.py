"""``wardround sites``: invite, look at, suspend and revoke sites."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from fl_protocol.ids import site_id_from_text
from wardround.cli.shell import shell_of
from wardround.documents import as_document, text_of

sites_app = typer.Typer(no_args_is_help=True, help="Sites: invite, list, show, suspend, resume, revoke.")

SiteName = Annotated[str, typer.Argument(help="The site's name, for example st-mary.", metavar="SITE")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.")]

_COLUMNS = (
    ("site", "site_id"),
    ("state", "state"),
    ("agent", "agent_version"),
    ("last seen", "last_seen_at"),
    ("reason", "reason"),
)
_FACTS = (
    ("site", "site_id"),
    ("state", "state"),
    ("reason", "reason"),
    ("signing key", "signing_key_sha256"),
    ("agent", "agent_version"),
    ("enrolled", "enrolled_at"),
    ("last seen", "last_seen_at"),
)


@sites_app.command("list", epilog="Example: wardround sites list")
def list_sites(context: typer.Context) -> None:
    """List every site and its state."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_list(
            client.pages("/api/v1/sites"),
            _COLUMNS,
            nothing="There is no site yet. Invite one: wardround sites invite NAME",
        )


@sites_app.command("show", epilog="Example: wardround sites show st-mary")
def show_site(context: typer.Context, site: SiteName) -> None:
    """Show one site, with the fingerprint of its signing key that other sites pin."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.get(f"/api/v1/sites/{site_id_from_text(site)}"), _FACTS)


@sites_app.command("invite", epilog="Example: wardround sites invite st-mary")
def invite_site(context: typer.Context, site: SiteName) -> None:
    """Invite a site: prints the one-time code and the command that the hospital's engineer types."""
    shell = shell_of(context)
    with shell.connect() as client:
        invitation = client.post("/api/v1/sites", {"name": site_id_from_text(site)})
    if shell.as_json:
        shell.show_document(invitation)
        return
    name = text_of(as_document(invitation.get("site"), source="the invitation"), "site_id")
    shell.out.print(Text(f"{name} is invited until {text_of(invitation, 'expires_at')}."))
    shell.out.print("At the hospital, once:")
    shell.out.print(Text(f"    {text_of(invitation, 'command')}"), soft_wrap=True)
    shell.out.print("The code works once. Send it by another way than the address; it is not shown again.")


@sites_app.command("suspend", epilog='Example: wardround sites suspend st-mary --reason "maintenance"')
def suspend_site(context: typer.Context, site: SiteName, reason: Reason = "suspended by an admin") -> None:
    """Keep a site out of new rounds until it is resumed."""
    _change(context, site, "suspend", reason=reason)


@sites_app.command("resume", epilog="Example: wardround sites resume st-mary")
def resume_site(context: typer.Context, site: SiteName, reason: Reason = "resumed by an admin") -> None:
    """Let a suspended site take part again."""
    _change(context, site, "resume", reason=reason)


@sites_app.command("revoke", epilog='Example: wardround sites revoke st-mary --reason "key lost"')
def revoke_site(
    context: typer.Context,
    site: SiteName,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.", show_default=False)],
) -> None:
    """Shut a site out for ever: its certificates are no longer accepted and its name is never given again."""
    _change(context, site, "revoke", reason=reason)


def _change(context: typer.Context, site: str, action: str, *, reason: str) -> None:
    shell = shell_of(context)
    with shell.connect() as client:
        changed = client.post(f"/api/v1/sites/{site_id_from_text(site)}:{action}", {"reason": reason})
    shell.show_facts(changed, _FACTS)
