"""How a command answers: one JSON document, or a few plain lines; and which exit code an error means."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from fl_protocol.clock import Clock, SystemClock
from fl_protocol.errors import WardroundError
from fl_protocol.ids import IdentifierInvalidError
from site_agent.approvals.errors import (
    ExpiryInvalidError,
    PeersUnlistedError,
    PolicyDeniedError,
    PurposeNeededError,
    RunUnknownError,
)
from site_agent.datasets.errors import DatasetDeclarationError, DatasetUnknownError
from site_agent.enrolment.errors import (
    EnrolmentCodeExpiredError,
    EnrolmentCodeSpentError,
    EnrolmentCodeUnknownError,
    EnrolmentInputError,
    EnrolmentRefusedError,
    EnrolmentUnreachableError,
    NotEnrolledError,
)
from site_agent.errors import CoordinatorUnavailableError, ProxyCredentialsError, ProxyInvalidError, SiteAgentError
from site_agent.folder import SiteFolder
from site_agent.policy.reading import PolicyFaultsError
from site_agent.settings import SettingsInvalidError

_FILE_WIDTH = 200
FAILED, WRONG_USAGE, REFUSED, NOT_FOUND, UNAVAILABLE = 1, 2, 3, 4, 5


class UsageError(SiteAgentError):
    """The command was called in a way that it cannot follow."""

    code = "wrong-usage"


class NotInThisVersionError(UsageError):
    """A later version brings it."""

    code = "not-in-this-version"


class PeerUnknownError(SiteAgentError):
    """No peer of that name is listed."""

    code = "peer-unknown"


_EXIT_CODES: tuple[tuple[tuple[type[WardroundError], ...], int], ...] = (
    (
        (
            UsageError,
            SettingsInvalidError,
            PolicyFaultsError,
            EnrolmentInputError,
            DatasetDeclarationError,
            PurposeNeededError,
            ExpiryInvalidError,
            NotEnrolledError,
            IdentifierInvalidError,
            ProxyInvalidError,
            ProxyCredentialsError,
        ),
        WRONG_USAGE,
    ),
    (
        (
            PolicyDeniedError,
            PeersUnlistedError,
            EnrolmentCodeUnknownError,
            EnrolmentCodeSpentError,
            EnrolmentCodeExpiredError,
            EnrolmentRefusedError,
        ),
        REFUSED,
    ),
    ((RunUnknownError, DatasetUnknownError, PeerUnknownError), NOT_FOUND),
    ((EnrolmentUnreachableError, CoordinatorUnavailableError), UNAVAILABLE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConsole:
    """What every command is given: the state folder, the clock and the form of its answer."""

    folder: SiteFolder
    is_json: bool
    clock: Clock = field(default_factory=SystemClock)

    def answer(self, document: Mapping[str, object], *lines: RenderableType) -> None:
        """Answer with the document (``--json``) or with the lines."""
        if self.is_json:
            typer.echo(json.dumps(document, indent=2, default=str))
            return
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            # Nobody's screen limits a file or a pipe.
            console = Console(highlight=False, soft_wrap=True, width=_FILE_WIDTH)
        for line in lines:
            console.print(line, markup=False)

    def say(self, line: str) -> None:
        """Tell a person something meanwhile, on stderr."""
        if not self.is_json:
            typer.echo(line, err=True)

    @property
    def is_interactive(self) -> bool:
        """Whether a person can be asked."""
        return not self.is_json and sys.stdin.isatty() and sys.stdout.isatty()


def console_of(context: typer.Context) -> SiteConsole:
    """The console that the program's first options made."""
    console = context.obj
    if not isinstance(console, SiteConsole):
        message = "the program's callback sets the console"
        raise TypeError(message)
    return console


def console_for(state_dir: Path, *, is_json: bool) -> SiteConsole:
    """The console for the program's first options."""
    return SiteConsole(folder=SiteFolder(root=state_dir), is_json=is_json)


def local_user() -> str:
    """The name of who types, for records and statements."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        return "unknown"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table that is never cut: fingerprints are compared by eye."""
    drawn = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    return drawn


def exit_code_for(error: WardroundError) -> int:
    """The exit code that an error means; 1 where no other is agreed."""
    for kinds, exit_code in _EXIT_CODES:
        if isinstance(error, kinds):
            return exit_code
    return FAILED


def report_error(error: WardroundError, *, is_json: bool) -> int:
    """Say what went wrong and what to do; the exit code."""
    advice = str(getattr(error, "advice", "") or "")
    if is_json:
        faults = [str(fault) for fault in getattr(error, "faults", ())]
        document = {"error": {"code": error.code, "message": error.message, "advice": advice, "facts": error.facts}}
        if faults:
            document["error"]["faults"] = faults
        typer.echo(json.dumps(document, indent=2, default=str))
    else:
        typer.echo(f"Error: {error}", err=True)
        if advice:
            typer.echo(advice, err=True)
    return exit_code_for(error)
