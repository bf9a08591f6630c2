"""What the programs of this package have in common: their shell, and how an error becomes an exit code and a message.

``--json`` means the same wherever it stands in the line, so it is taken out before the line is read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.text import Text

from fl_protocol.errors import WardroundError
from wardround.cli.shell import Shell, open_client
from wardround.errors import CommandError, CommandFailedError, DemoFailedError, ExitCode, UsageInvalidError
from wardround.exit_codes import INTERRUPTED, error_document, exit_code_of

_PIPE_WIDTH = 160


def read_line(arguments: Sequence[str] | None) -> tuple[list[str], Shell]:
    """The words of the line without ``--json``, and the shell that they run in; None: the line of this process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    shell = Shell(
        as_json="--json" in words,
        environment=os.environ,
        # A pipe has no width; tables in it are not cut to that of a terminal of 1980.
        out=Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH),
        err=Console(file=sys.stderr),
        open_client=open_client,
    )
    return [word for word in words if word != "--json"], shell


def run_line(
    app: typer.Typer, words: Sequence[str], shell: Shell, *, name: str, if_interrupted: str = "Interrupted."
) -> int:
    """Run one command of an application; every error becomes its exit code and a message here."""
    try:
        app(list(words), prog_name=name, obj=shell)
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if shell.as_json and exit_code == ExitCode.USAGE:
            # The reader of the line has said on stderr what is wrong with it.
            shell.show_document(error_document(UsageInvalidError("the command line is wrong; stderr says where")))
        return exit_code
    except KeyboardInterrupt:
        shell.note(if_interrupted)
        return INTERRUPTED
    except WardroundError as error:
        _show_error(error, shell)
        return int(exit_code_of(error))
    except OSError as error:
        # A full disk, a folder without rights: the operating system's own words say it best.
        _show_error(CommandFailedError(str(error)), shell)
        return int(ExitCode.FAILED)
    return 0


def _show_error(error: WardroundError, shell: Shell) -> None:
    """The sentence, the end of a log where there is one, and what to do; the document as well under ``--json``."""
    shell.err.print(Text.assemble(("Error: ", "bold red"), str(error)))
    if isinstance(error, DemoFailedError):
        for line in error.log_tail:
            shell.err.print(Text(f"  | {line}", style="dim"))
    if isinstance(error, CommandError) and error.advice:
        shell.err.print(Text(error.advice))
    if shell.as_json:
        shell.show_document(error_document(error))
