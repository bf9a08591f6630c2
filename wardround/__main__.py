"""The program ``wardround``: one typer application, one place where errors become exit codes.

``--json`` means the same wherever it stands in the line, so it is taken out before the line is read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fl_protocol.errors import WardroundError
from wardround import __version__
from wardround.cli.account import login, whoami
from wardround.cli.audit import audit_app
from wardround.cli.demo import demo
from wardround.cli.passphrase import passphrase_app
from wardround.cli.releases import releases_app
from wardround.cli.rounds import rounds_app
from wardround.cli.runs import runs_app
from wardround.cli.shell import Shell, open_client
from wardround.cli.sites import sites_app
from wardround.cli.users import tokens_app, users_app
from wardround.errors import CommandError, CommandFailedError, DemoFailedError, ExitCode
from wardround.exit_codes import INTERRUPTED, error_document, exit_code_of

_PIPE_WIDTH = 160

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
    words = list(sys.argv[1:] if arguments is None else arguments)
    shell = Shell(
        as_json="--json" in words,
        environment=os.environ,
        # A pipe has no width; tables in it are not cut to that of a terminal of 1980.
        out=Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH),
        err=Console(file=sys.stderr),
        open_client=open_client,
    )
    return run_command([word for word in words if word != "--json"], shell)


def run_command(words: Sequence[str], shell: Shell) -> int:
    """Run one command in the given shell; every error becomes its exit code and a message here."""
    try:
        app(list(words), prog_name="wardround", obj=shell)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        shell.note("Interrupted.")
        return INTERRUPTED
    except WardroundError as error:
        show_error(error, shell)
        return int(exit_code_of(error))
    except OSError as error:
        # A full disk, a folder without rights: the operating system's own words say it best.
        show_error(CommandFailedError(str(error)), shell)
        return int(ExitCode.FAILED)
    return 0


def show_error(error: WardroundError, shell: Shell) -> None:
    """The sentence, the end of a log where there is one, and what to do; the document as well under ``--json``."""
    shell.err.print(Text.assemble(("Error: ", "bold red"), str(error)))
    if isinstance(error, DemoFailedError):
        for line in error.log_tail:
            shell.err.print(Text(f"  | {line}", style="dim"))
    if isinstance(error, CommandError) and error.advice:
        shell.err.print(Text(error.advice))
    if shell.as_json:
        shell.show_document(error_document(error))


if __name__ == "__main__":
    sys.exit(main())
