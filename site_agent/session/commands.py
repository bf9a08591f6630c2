"""What the machine asks of its shell, in the imperative. Each is safe to perform again after a crash."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.context import ExchangeContext
from site_agent.session.events import DeclineKind, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRound:
    """Check M0 against everything this site holds; record the round as joined, or refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptRound:
    """Tell the coordinator that this site takes part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartJob:
    """Start the trainer on this round's job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopJob:
    """Stop the trainer if it still works on this round's job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportReady:
    """Tell the coordinator that the payload is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineRound:
    """Tell the coordinator that this site takes no part, or no further."""

    kind: DeclineKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeStep:
    """Make a statement and write it to the journal. It is not sent yet."""

    step: Step
    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendStep:
    """Send the journalled statement, byte for byte; for the masked input, until there is a receipt."""

    step: Step
    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class SendComplaint:
    """Send the journalled complaint."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseExchange:
    """Delete the exchange's key and files."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleResult:
    """Verify the published sum, fold it, store the new public state, acknowledge."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRound:
    """Record the outcome and delete the job folder with the plain update."""

    outcome: str


SessionCommand = (
    CheckRound
    | AcceptRound
    | StartJob
    | StopJob
    | ReportReady
    | DeclineRound
    | TakeStep
    | SendStep
    | SendComplaint
    | CloseExchange
    | SettleResult
    | CloseRound
)
