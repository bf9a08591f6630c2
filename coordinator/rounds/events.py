"""What a round and an exchange can hear of. Past tense: each says that something is so already.

What a site sent is stored before its event is; an event therefore carries names and no content.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.ids import SiteId


class MessageKind(StrEnum):
    """A site's messages of one exchange, of which each is sent once."""

    M1 = "M1"
    M3 = "M3"
    M5 = "M5"
    M7 = "M7"
    M9 = "M9"
    COMPLAINT = "complaint"


class ExchangeFailure(StrEnum):
    """Why an exchange FAILED."""

    TOO_FEW_ADVERTISED = "too-few-advertised"
    TOO_FEW_SHARED = "too-few-shared"
    TOO_FEW_UPLOADED = "too-few-uploaded"
    TOO_FEW_CONFIRMED = "too-few-confirmed"
    TOO_FEW_REVEALED = "too-few-revealed"
    DEALER_BLAMED = "dealer-blamed"
    UNMASKING_REFUSED = "unmasking-refused"
    IMPLAUSIBLE_SUM = "implausible-sum"
    EFFECT_FAILED = "effect-failed"
    ROUND_ENDED = "round-ended"


class AbortReason(StrEnum):
    """Why a round was ABORTED."""

    QUORUM_NOT_REACHED = "quorum-not-reached"
    EXCHANGE_ATTEMPTS_EXHAUSTED = "exchange-attempts-exhausted"
    DEALER_BLAMED = "dealer-blamed"
    TOO_FEW_CONFIRMED = "too-few-confirmed"
    TOO_FEW_REVEALED = "too-few-revealed"
    UNMASKING_REFUSED = "unmasking-refused"
    IMPLAUSIBLE_SUM = "implausible-sum"
    FOLD_REFUSED = "fold-refused"
    EFFECT_FAILED = "effect-failed"
    RUN_CANCELLED = "run-cancelled"
    COORDINATOR_RESTORED = "coordinator-restored"

    @property
    def is_refusal(self) -> bool:
        """Whether another attempt would probably end the same way: it counts towards the run's failure.

        The others say that sites or storage were away; such an attempt cost time, and the run waits for them.
        """
        return self in {
            AbortReason.DEALER_BLAMED,
            AbortReason.TOO_FEW_REVEALED,
            AbortReason.UNMASKING_REFUSED,
            AbortReason.IMPLAUSIBLE_SUM,
            AbortReason.FOLD_REFUSED,
            AbortReason.EFFECT_FAILED,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """Nothing but ``now``, which every step receives. Comes last in each turn of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReported:
    """A site's participation changed by its own word: accepted, ready, declined or failed; or it may act no more."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled:
    """The run was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectGaveUp:
    """An effect has failed as often as it may."""


# Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysAdvertised:
    """An M1 was accepted."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesDealt:
    """An M3 was accepted."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCompleted:
    """An M5 and all the bytes that it announced were accepted."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorsConfirmed:
    """An M7 was accepted."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesRevealed:
    """An M9 was accepted: each of its shares matches its commitment."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class LiarNamed:
    """A site revealed shares that are not those it was dealt."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class DealerBlamed:
    """A site complained, with its signature, of the shares that a dealer gave it."""

    dealer: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SumComputed:
    """The sum is stored and its signed result too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRefused:
    """The shares give no sum, or give one that no honest cohort can have."""

    reason: ExchangeFailure


# Round


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened:
    """M0 is signed and its participations are INVITED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSummed:
    """The round's exchange is SUMMED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeFailed:
    """The round's exchange is FAILED; ``may_be_repeated`` while no share had been asked for."""

    reason: ExchangeFailure
    may_be_repeated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFolded:
    """The new public state is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRefused:
    """The sums cannot be folded."""


ExchangeEvent = (
    KeysAdvertised
    | SharesDealt
    | UploadCompleted
    | SurvivorsConfirmed
    | SharesRevealed
    | LiarNamed
    | DealerBlamed
    | SiteReported
    | SumComputed
    | SumRefused
    | EffectGaveUp
    | RunCancelled
    | TimePassed
)
RoundEvent = (
    RoundOpened
    | SiteReported
    | ExchangeSummed
    | ExchangeFailed
    | RoundFolded
    | FoldRefused
    | EffectGaveUp
    | RunCancelled
    | TimePassed
)
