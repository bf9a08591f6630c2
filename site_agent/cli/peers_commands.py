"""``wardround-site peers``: the signing keys of other sites, compared out of band, kept in ``site.yaml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

import typer

from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import IdentifierInvalidError, sha256_hex_from_text, site_id_from_text
from site_agent.cli.console import PeerUnknownError, SiteConsole, UsageError, console_of, local_user, table
from site_agent.cli.open_site import OpenSite, open_site
from site_agent.durable_files import write_whole
from site_agent.peers_file import PeersFileError, text_with_peers

app = typer.Typer(no_args_is_help=True, help="The other sites' keys, compared out of band.")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The other site's name.")],
    sha256: Annotated[str, typer.Argument(metavar="SHA256", help="Its key, from 'identity show' there.")],
) -> None:
    """List a site whose key you compared by telephone or on paper.

    Example: wardround-site peers add charite 9f86d0...
    """
    console = console_of(context)
    site_id = site_id_from_text(name)
    pin = _pin(sha256)
    with open_site(console) as site:
        if site_id == site.identity.site_id:
            raise UsageError("that is this site; only the others are peers")
        _change(console, site, {**site.settings.peers, site_id: pin}, kind=AuditKind.PEER_ADDED, peer=site_id, pin=pin)
    console.answer({"name": site_id, "sha256": pin}, f"Listed {site_id}. A running agent heeds it from now on.")


@app.command(name="list")
def list_command(context: typer.Context) -> None:
    """Show the listed sites.

    Example: wardround-site peers list
    """
    console = console_of(context)
    with open_site(console) as site:
        peers = sorted(site.settings.peers.items())
    drawn = table(("site", "signing key (SHA-256)"), peers)
    items = [{"name": name, "sha256": pin} for name, pin in peers]
    console.answer({"items": items}, drawn if peers else "No peer is listed. 'wardround-site peers add NAME SHA256'.")


@app.command()
def remove(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Take a site off the list.

    Example: wardround-site peers remove charite
    """
    console = console_of(context)
    with open_site(console) as site:
        peers = dict(site.settings.peers)
        pin = peers.pop(name, None)
        if pin is None:
            raise PeerUnknownError("no peer of this name is listed", name=name[:80])
        _change(console, site, peers, kind=AuditKind.PEER_REMOVED, peer=name, pin=pin)
    console.answer({"name": name}, f"Removed {name} from the list. Runs that were approved with it stay approved.")


def _change(
    console: SiteConsole, site: OpenSite, peers: Mapping[str, str], *, kind: AuditKind, peer: str, pin: str
) -> None:
    place = console.folder.site_yaml
    text = text_with_peers(place.read_text(encoding="utf-8"), peers)
    # Before it is recorded: a container may have the file mounted from where it is kept.
    if not os.access(place, os.W_OK):
        raise PeersFileError("site.yaml cannot be written here; change 'peers' where the file is kept")
    # The record comes first: no record, no action.
    site.db.run_tx(
        "change_peers",
        lambda session: site.audit.append(session, kind, f"user:{local_user()}", peer=peer, signing_key_sha256=pin),
    )
    write_whole(place, text.encode("utf-8"), mode=place.stat().st_mode & 0o777)


def _pin(text: str) -> str:
    try:
        return sha256_hex_from_text("".join(text.lower().removeprefix("sha256:").replace(":", "").split()))
    except IdentifierInvalidError as error:
        raise UsageError("SHA256 is 64 characters 0-9, a-f, as 'wardround-site identity show' prints there") from error
