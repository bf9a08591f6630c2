"""Every error that ``wardround`` shows to a person, each with what to do about it.

    fl_protocol.errors.WardroundError
    └── CommandError                 a sentence, an advice, an exit code
        ├── CommandFailedError       1  it was tried and did not work
        │   ├── DemoFailedError         the demonstration; the work folder is kept
        │   ├── EvidenceFaultError      a signature, a digest or a log does not verify
        │   └── ResponseUnreadableError the coordinator answered something else than the interface says
        ├── UsageInvalidError        2  what was typed or configured is wrong
        │   ├── DocumentRefusedError    a document with its faults
        │   │   ├── SpecRefusedError       a run specification
        │   │   └── StudyInvalidError      a study's description
        │   └── StudyDataMissingError   a study's data, which the user must bring
        ├── RefusedError             3  a policy or a permission says no
        ├── NotFoundError            4  there is nothing of that name
        │   └── StudyUnknownError       no study
        └── UnavailableError         5  try again

The exit code is a property of the class, so that it is decided once (``exit_codes`` maps what is raised elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

from fl_protocol.errors import Fact, WardroundError


class ExitCode(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5


class CommandError(WardroundError):
    """Something that a person is told. ``advice`` says what to do next; it is empty where nothing can be done."""

    code = "command-failed"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, advice: str = "", code: str | None = None, **facts: Fact) -> None:
        """Keep sentence, advice and facts; ``code`` replaces the class's own where a server named it."""
        super().__init__(message, **facts)
        self.advice = advice
        self.problem_code = code or self.code

    def to_document(self) -> dict[str, object]:
        """The error as it stands in the ``--json`` answer."""
        return {"code": self.problem_code, "message": self.message, "advice": self.advice, "facts": self.facts}


class CommandFailedError(CommandError):
    """It was tried and did not work."""


class DemoFailedError(CommandFailedError):
    """The demonstration stopped before its end; what it wrote is kept."""

    code = "demo-failed"

    def __init__(self, message: str, *, advice: str = "", log_tail: Iterable[str] = (), **facts: Fact) -> None:
        """``log_tail``: the last lines of the log of the process that failed."""
        super().__init__(message, advice=advice, code=None, **facts)
        self.log_tail = tuple(log_tail)

    def to_document(self) -> dict[str, object]:
        """With the end of the log."""
        return {**super().to_document(), "log_tail": list(self.log_tail)}


class EvidenceFaultError(CommandFailedError):
    """A signature, a digest or a log does not verify."""

    code = "evidence-fault"


class ResponseUnreadableError(CommandFailedError):
    """The coordinator answered something else than the interface says."""

    code = "response-unreadable"


class UsageInvalidError(CommandError):
    """What was typed or configured is wrong."""

    code = "usage-invalid"
    exit_code = ExitCode.USAGE


class DocumentRefusedError(UsageInvalidError):
    """A document was refused whole; ``faults`` names every wrong key."""

    def __init__(self, message: str, *, faults: tuple[tuple[str, str], ...], advice: str = "") -> None:
        """``faults``: pairs of a key's path and what is wrong with it."""
        super().__init__(message, advice=advice, n_faults=len(faults))
        self.faults = faults

    def __str__(self) -> str:
        """One line a fault."""
        return "\n".join([self.message, *(f"  {path}: {sentence}" for path, sentence in self.faults)])

    def to_document(self) -> dict[str, object]:
        """With the faults as a list."""
        faults = [{"path": path, "message": sentence} for path, sentence in self.faults]
        return {**super().to_document(), "faults": faults}


class SpecRefusedError(DocumentRefusedError):
    """A run specification was refused."""

    code = "run-spec-invalid"


class StudyInvalidError(DocumentRefusedError):
    """A study's description was refused."""

    code = "study-invalid"


class StudyDataMissingError(UsageInvalidError):
    """A study needs data that the user must bring; ``advice`` says where it is had."""

    code = "study-data-missing"


class RefusedError(CommandError):
    """A policy or a permission says no."""

    code = "refused"
    exit_code = ExitCode.REFUSED


class NotFoundError(CommandError):
    """There is nothing of that name."""

    code = "not-found"
    exit_code = ExitCode.NOT_FOUND


class StudyUnknownError(NotFoundError):
    """There is no study of that name; ``advice`` lists what there is."""

    code = "study-unknown"


class UnavailableError(CommandError):
    """The other side does not answer, or asks to be left alone for a moment."""

    code = "unavailable"
    exit_code = ExitCode.UNAVAILABLE
