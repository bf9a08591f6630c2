"""What can happen in a round, in the past tense. Facts only: who checks them and how is the shell's business."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.context import ExchangeContext, RoundContext


class Step(StrEnum):
    """The five statements of a site in one exchange, each made once."""

    ADVERTISE = "M1"
    SHARE = "M3"
    MASK = "M5"
    CONFIRM = "M7"
    REVEAL = "M9"


class DeclineKind(StrEnum):
    """Whether the site says no, or meant to take part and cannot."""

    REFUSED = "refused"
    FAILED = "failed"


def round_of(context: ExchangeContext) -> RoundContext:
    """The attempt at a round that an exchange belongs to."""
    return RoundContext(run_id=context.run_id, round_index=context.round_index, round_attempt=context.round_attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAdmitted:
    """Every check of M0 passed and the round is recorded as joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRefused:
    """A check said no, with a closed reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSucceeded:
    """The trainer's payload is there and is admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed:
    """The trainer gave no payload that may be summed."""

    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOpened:
    """The coordinator asks for keys."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysRelayed:
    """M2 came."""

    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesRelayed:
    """M4 came."""

    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorsRelayed:
    """M6 came."""

    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationsRelayed:
    """M8 came."""

    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """A statement was made and is in the journal, on the disk; it may leave now, and no other in its place."""

    step: Step
    context: ExchangeContext
    input_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRefused:
    """This site's role refuses what it was given."""

    context: ExchangeContext
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DealerBlamed:
    """A dealer's share is bad; the signed complaint is in the journal."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReceipted:
    """The coordinator signed for the whole masked input."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPublished:
    """M10 came."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSettled:
    """The sum is verified, folded, stored and acknowledged."""

    context: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRefused:
    """The published result does not follow from what this site holds."""

    context: ExchangeContext
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbandoned:
    """The coordinator gave the round up, or opened another attempt."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalEnded:
    """This site's word on the run was taken back, or has ended; a closed reason."""

    reason: str


RelayedInput = KeysRelayed | SharesRelayed | SurvivorsRelayed | ConfirmationsRelayed

SessionEvent = (
    RoundAdmitted
    | RoundRefused
    | JobSucceeded
    | JobFailed
    | ExchangeOpened
    | KeysRelayed
    | SharesRelayed
    | SurvivorsRelayed
    | ConfirmationsRelayed
    | StepTaken
    | StepRefused
    | DealerBlamed
    | UploadReceipted
    | ResultPublished
    | ResultSettled
    | ResultRefused
    | RoundAbandoned
    | ApprovalEnded
)
