"""What every command of ``wardround-coordinator`` shares: one form of answers, one of errors, the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from coordinator.settings import SettingsInvalidError
from fl_protocol.errors import WardroundError

P = ParamSpec("P")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 4
EXIT_UNAVAILABLE = 5
JSON_OPTION = "--json"
_NOT_FOUND_CODE = "not-found"
_UNAVAILABLE_CODES = frozenset({"listener-failed", "database-busy", "database-unavailable", "rotation-waits"})

Config = Annotated[Path, typer.Option("--config", "-c", help="The coordinator's file.", envvar="WARDROUND_CONFIG")]
DEFAULT_CONFIG = Path("coordinator.yaml")


class _Output:
    """Whether answers are for programs, set once by the option before the command; and whether an error was told."""

    is_json = False
    has_answered = False


class FileUnusableError(WardroundError):
    """A file or folder that the command was given cannot be used; the operating system says why."""

    code = "file-unusable"


class WrongUsageError(WardroundError):
    """The command line is wrong."""

    code = "wrong-usage"


def _show_version(is_asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if is_asked:
        from coordinator.api.main import program_version

        typer.echo(program_version())
        raise typer.Exit


def set_output(
    *,
    is_json: Annotated[bool, typer.Option(JSON_OPTION, help="One JSON document on stdout; logs on stderr.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run a Wardround coordinator."""
    _Output.is_json = is_json


def run_line(cli: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line, with ``--json`` anywhere in it; the exit code."""
    _Output.has_answered = False
    is_json = JSON_OPTION in arguments
    words = [word for word in arguments if word != JSON_OPTION]
    try:
        cli(args=[JSON_OPTION, *words] if is_json else words, prog_name="wardround-coordinator")
    except SystemExit as ending:
        exit_code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if is_json and exit_code == EXIT_USAGE and not _Output.has_answered:
            # Typer has said on stderr what is wrong with the line.
            _say_error(WrongUsageError("the command line is wrong; stderr says where"))
        return exit_code
    return 0


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that were raised on purpose into a sentence and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except WardroundError as error:
            _fail(error)
        except OSError as error:
            # A folder that is not there, a full disk: the operating system's own words say it best.
            _fail(FileUnusableError(str(error)))

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
        _say_error(error, faults)
    elif faults:
        typer.echo("\n".join(["The configuration has faults:", *(f"  {fault}" for fault in faults)]), err=True)
    else:
        typer.echo(f"{error} [{error.code}]", err=True)
    raise typer.Exit(_exit_code(error))


def _say_error(error: WardroundError, faults: Sequence[str] = ()) -> None:
    document = {"code": error.code, "message": error.message, "facts": error.facts, "faults": list(faults)}
    typer.echo(json.dumps({"error": document}))
    _Output.has_answered = True


def _exit_code(error: WardroundError) -> int:
    if isinstance(error, SettingsInvalidError):
        return EXIT_USAGE
    if error.code == _NOT_FOUND_CODE:
        return EXIT_NOT_FOUND
    return EXIT_UNAVAILABLE if error.code in _UNAVAILABLE_CODES else EXIT_FAILED
