"""What every command of ``wardround-coordinator`` shares: one form of answers, one of errors, the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from coordinator.settings import SettingsInvalidError
from fl_protocol.errors import WardroundError

P = ParamSpec("P")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 5
_UNAVAILABLE_CODES = frozenset({"listener-failed", "database-busy", "database-unavailable", "rotation-waits"})

Config = Annotated[Path, typer.Option("--config", "-c", help="The coordinator's file.", envvar="WARDROUND_CONFIG")]
DEFAULT_CONFIG = Path("coordinator.yaml")


class _Output:
    """Whether answers are for programs. Set once, by the option before the command."""

    is_json = False


def set_output(
    *,
    is_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs on stderr.")] = False,
) -> None:
    """Run a Wardround coordinator."""
    _Output.is_json = is_json


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that were raised on purpose into a sentence and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except WardroundError as error:
            _fail(error)

    return run


def answer(document: Mapping[str, object], lines: list[str]) -> None:
    """Print the document under ``--json``, else the lines."""
    typer.echo(json.dumps(document, indent=2) if _Output.is_json else "\n".join(lines))


def say_progress(line: str) -> None:
    """Print a line beside the answer."""
    typer.echo(line, err=True)


def _fail(error: WardroundError) -> None:
    faults = list(error.faults) if isinstance(error, SettingsInvalidError) else []
    if _Output.is_json:
        typer.echo(
            json.dumps(
                {"error": {"code": error.code, "message": error.message, "facts": error.facts, "faults": faults}}
            )
        )
    elif faults:
        typer.echo("\n".join(["The configuration has faults:", *(f"  {fault}" for fault in faults)]), err=True)
    else:
        typer.echo(f"{error} [{error.code}]", err=True)
    raise typer.Exit(_exit_code(error))


def _exit_code(error: WardroundError) -> int:
    if isinstance(error, SettingsInvalidError):
        return EXIT_USAGE
    return EXIT_UNAVAILABLE if error.code in _UNAVAILABLE_CODES else EXIT_FAILED
