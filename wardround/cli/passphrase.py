"""``wardround passphrase``: what you type besides your token when you sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.shell import shell_of
from wardround.client.connection import read_token

passphrase_app = typer.Typer(no_args_is_help=True, help="Your signing passphrase: set.")


@passphrase_app.command("set", epilog="Example: wardround passphrase set")
def set_passphrase(
    context: typer.Context,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", help="A file that holds it; else you are asked, twice.")
    ] = None,
    current_file: Annotated[
        Path | None, typer.Option("--current-file", help="A file that holds the present one; with --file.")
    ] = None,
    change: Annotated[bool, typer.Option("--change", help="You have one already: you are asked for it.")] = False,
) -> None:
    """Set your signing passphrase, 12 characters at least; without it your token signs no release."""
    shell = shell_of(context)
    request: dict[str, object] = {}
    if current_file is not None:
        request["current_passphrase"] = read_token(current_file)
    elif change:
        request["current_passphrase"] = typer.prompt("Present passphrase", hide_input=True, err=True)
    if file is not None:
        request["passphrase"] = read_token(file)
    else:
        asked = typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
        request["passphrase"] = asked
    with shell.connect() as client:
        shell.show_facts(client.post("/api/v1/me/passphrase", request), (("set", "set_at"),))
