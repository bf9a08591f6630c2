"""The program ``wardround``: one typer application, a room of commands for each thing that people work on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from wardround import __version__
from wardround.cli.account import login, whoami
from wardround.cli.audit import audit_app
from wardround.cli.demo import demo
from wardround.cli.passphrase import passphrase_app
from wardround.cli.program import read_line, run_line
from wardround.cli.releases import releases_app
from wardround.cli.rounds import rounds_app
from wardround.cli.runs import runs_app
from wardround.cli.shell import Shell
from wardround.cli.sites import sites_app
from wardround.cli.users import tokens_app, users_app

app = typer.Typer(
    name="wardround",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune foundation models across hospitals: patient data stays, only the secure sum of updates leaves.",
    epilog="Start here: wardround demo. Every command takes --json. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not found, 5 unavailable, try again.",
)
app.add_typer(sites_app, name="sites")
app.add_typer(runs_app, name="runs")
app.add_typer(rounds_app, name="rounds")
app.add_typer(releases_app, name="releases")
app.add_typer(audit_app, name="audit")
app.add_typer(users_app, name="users")
app.add_typer(tokens_app, name="tokens")
app.add_typer(passphrase_app, name="passphrase")
app.command("demo", epilog="Example: wardround demo --sites 3 --rounds 3")(demo)
app.command("login", epilog="Example: wardround login https://127.0.0.1:8443 --root root.pem --token-file admin.token")(
    login
)
app.command("whoami", epilog="Example: wardround whoami")(whoami)


def _show_version(is_asked: bool) -> None:  # noqa: FBT001 # typer calls it with the option's value
    if is_asked:
        typer.echo(f"wardround {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Declared for --help; ``main`` has taken --json out of the line before it comes here."""
    del as_json, version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words, shell = read_line(arguments)
    return run_command(words, shell)


def run_command(words: Sequence[str], shell: Shell) -> int:
    """Run one command in the given shell; returns the exit code."""
    return run_line(app, words, shell, name="wardround")


if __name__ == "__main__":
    sys.exit(main())
