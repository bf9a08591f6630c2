"""The program ``wardround-site``: its first options, its commands, and the exit code of each outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.errors import WardroundError
from site_agent.cli import (
    audit_commands,
    datasets_commands,
    identity_commands,
    peers_commands,
    policy_commands,
    runs_commands,
)
from site_agent.cli.console import FAILED, WRONG_USAGE, UsageError, console_for, report_error
from site_agent.cli.doctor_command import doctor
from site_agent.cli.enrol_command import agent_version, enrol
from site_agent.cli.start_command import start
from site_agent.cli.status_command import status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Wardround at a hospital: enrol, say what is permitted, take part in runs, show what was done.",
)
app.command()(enrol)
app.command()(start)
app.command()(status)
app.command()(doctor)
app.add_typer(datasets_commands.app, name="datasets")
app.add_typer(runs_commands.app, name="runs")
app.add_typer(peers_commands.app, name="peers")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(audit_commands.privacy_app, name="privacy")
app.add_typer(audit_commands.audit_app, name="audit")
app.add_typer(identity_commands.identity_app, name="identity")

_STATE_DIR = "--state-dir"
_JSON = "--json"


def _show_version(is_asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if is_asked:
        typer.echo(agent_version())
        raise typer.Exit


@app.callback()
def first_options(
    context: typer.Context,
    state_dir: Annotated[
        Path, typer.Option(_STATE_DIR, envvar="WARDROUND_STATE_DIR", help="Where this site's files lie.")
    ] = Path("site-state"),
    is_json: Annotated[bool, typer.Option(_JSON, help="Answer with one JSON document on stdout.")] = False,  # noqa: FBT002 - a switch
    _version: Annotated[  # noqa: FBT002 - a switch
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Wardround at a hospital: enrol, say what is permitted, take part in runs, show what was done.

    --state-dir and --json may stand anywhere on the line.

    Example: wardround-site --state-dir /var/lib/wardround status
    """
    context.obj = console_for(state_dir, is_json=is_json)


def run_program(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    ordered = first_options_first(arguments)
    is_json = _JSON in ordered
    try:
        app(args=ordered, prog_name="wardround-site")
    except WardroundError as error:
        return report_error(error, is_json=is_json)
    except OSError as error:
        # A full disk, a folder without rights: the operating system's own words say it best.
        typer.echo(f"Error: {error}", err=True)
        return FAILED
    except SystemExit as ending:
        # Usage errors are told by typer itself, in words on stderr.
        exit_code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if is_json and exit_code == WRONG_USAGE:
            report_error(UsageError("the command line is wrong; stderr says where"), is_json=True)
        return exit_code
    return 0


def first_options_first(arguments: Sequence[str]) -> list[str]:
    """The command line with ``--json`` and ``--state-dir`` in front, wherever they were typed."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest.extend([argument, *remaining])
        elif argument == _JSON:
            front.append(argument)
        elif argument == _STATE_DIR:
            front.extend([argument, *[value for value in [next(remaining, None)] if value is not None]])
        elif argument.startswith(f"{_STATE_DIR}="):
            front.append(argument)
        else:
            rest.append(argument)
    return [*front, *rest]
