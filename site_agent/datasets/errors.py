"""What can be wrong with a dataset, in words that its owner can act on.

SiteAgentError
└── DatasetError                       carries ``advice``
    ├── DatasetDeclarationError            the YAML file has faults; all are listed
    ├── DatasetFileError                   the data file: missing, empty, malformed at record k
    ├── DatasetExistsError
    ├── DatasetExpiredError                its last day of use is over
    ├── DatasetUnknownError
    └── InspectionFailedError              the inspecting program itself failed
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.errors import Fact
from site_agent.errors import SiteAgentError


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFault:
    """What is wrong with one record, by place and kind. Safety: never what stands there.

    Attributes:
        file: its name, without folders; None where the trainer's program is of a version that did not tell it.
        line: from 1.
        field: a field that the declaration or the task names; None where the fault is the whole line's, or a field's
            whose name nobody declared (the name itself may be patient data).
        fault: a closed code.
    """

    file: str | None
    line: int
    field: str | None
    fault: str

    def __str__(self) -> str:
        """``notes.jsonl, line 12, age: not-a-whole-number``."""
        place = [part for part in (self.file, f"line {self.line}", self.field) if part is not None]
        return f"{', '.join(place)}: {self.fault}"


class DatasetError(SiteAgentError):
    """Base of this room's errors.

    Attributes:
        advice: what the operator may do, one sentence.
    """

    code = "dataset-error"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(message, **facts)
        self.advice = advice


class DatasetDeclarationError(DatasetError):
    """A dataset's YAML file has faults.

    Attributes:
        faults: every fault, with its key.
    """

    code = "dataset-declaration-invalid"

    def __init__(self, faults: tuple[str, ...]) -> None:
        """Keep all faults."""
        advice = "Mend the file and register it again; nothing was recorded."
        super().__init__(f"the dataset's declaration has {len(faults)} fault(s): {'; '.join(faults)}", advice=advice)
        self.faults = faults


class DatasetFileError(DatasetError):
    """The data file cannot be used; ``failure_code`` is the inspecting program's.

    Attributes:
        failure_code: for example that of a missing, an empty or a malformed file.
        faults: the first faults of its records, each by file, line and field.
        n_faults: how many there are.
    """

    code = "dataset-file-invalid"

    def __init__(
        self,
        message: str,
        *,
        failure_code: str,
        advice: str,
        faults: tuple[RecordFault, ...] = (),
        n_faults: int = 0,
        **facts: Fact,
    ) -> None:
        """Keep the program's code and what it found."""
        super().__init__(message, advice=advice, failure_code=failure_code, **facts)
        self.failure_code = failure_code
        self.faults = faults
        self.n_faults = n_faults


class DatasetExistsError(DatasetError):
    """A dataset of this name is registered with other content."""

    code = "dataset-exists"


class DatasetExpiredError(DatasetError):
    """The last day on which the dataset may be used is over."""

    code = "dataset-expired"


class DatasetUnknownError(DatasetError):
    """No dataset of this name is registered."""

    code = "dataset-unknown"


class InspectionFailedError(DatasetError):
    """The program that inspects data files gave no verdict."""

    code = "inspection-failed"
