"""The one place where an error becomes an exit code and a message; whatever was raised, wherever."""

from __future__ import annotations

from fl_protocol.errors import ProtocolError, WardroundError
from fl_protocol.ids import IdentifierInvalidError
from wardround.errors import CommandError, ExitCode

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""

_CODE_OF_ERROR: tuple[tuple[type[WardroundError], ExitCode], ...] = (
    (IdentifierInvalidError, ExitCode.USAGE),
    (ProtocolError, ExitCode.FAILED),
    (WardroundError, ExitCode.FAILED),
)


def exit_code_of(error: WardroundError) -> ExitCode:
    """The exit code that interfaces.md promises for this kind of error."""
    if isinstance(error, CommandError):
        return error.exit_code
    return next(code for kind, code in _CODE_OF_ERROR if isinstance(error, kind))


def error_document(error: WardroundError) -> dict[str, object]:
    """The answer of a command that failed under ``--json``."""
    if isinstance(error, CommandError):
        return {"error": error.to_document()}
    return {"error": {"code": error.code, "message": error.message, "advice": "", "facts": error.facts}}
