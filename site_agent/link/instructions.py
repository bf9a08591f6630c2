"""What the coordinator asks this site to do now, as values. Derived from its state and given until it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_protocol.errors import ProtocolError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.wire.convert import exchange_from_proto, round_from_proto, signed_from_proto
from fl_protocol.wire.v1 import round_pb2


class InstructionUnknownError(ProtocolError):
    """An answer holds no instruction that this version knows."""

    code = "instruction-unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nothing to do; ask again after a while."""

    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRound:
    """M0: take part in a round."""

    round: RoundContext
    manifest: SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExchange:
    """Advertise keys for an exchange (M1)."""

    exchange: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayKeys:
    """M2: answer with M3."""

    exchange: ExchangeContext
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayShares:
    """M4: answer with M5 and the masked input."""

    exchange: ExchangeContext
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySurvivors:
    """M6: answer with M7."""

    exchange: ExchangeContext
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfirmations:
    """M8: answer with M9."""

    exchange: ExchangeContext
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """M10 and where the sum lies."""

    exchange: ExchangeContext
    message: bytes
    sum_blob_sha256: str
    sum_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonRound:
    """A round that this site still works on is over."""

    round: RoundContext
    reason: str


Instruction = (
    Idle
    | TrainRound
    | OpenExchange
    | RelayKeys
    | RelayShares
    | RelaySurvivors
    | RelayConfirmations
    | PublishedResult
    | AbandonRound
)


def instruction_from_proto(answer: round_pb2.PollAssignmentResponse) -> Instruction:  # noqa: PLR0911 - one a kind
    """Read an answer to PollAssignment.

    Raises:
        InstructionUnknownError: it holds none that this version knows.
        IdentifierInvalidError: a name in it is none.
        WireMessageInvalidError: a signed body lacks a part.
    """
    match answer.WhichOneof("instruction"):
        case "idle":
            wait_s = answer.idle.retry_after_s
            # NaN compares false with everything: as a pause it is none, and a loop's clock goes wrong by it.
            return Idle(retry_after_s=wait_s if math.isfinite(wait_s) else 0.0)
        case "train":
            return TrainRound(
                round=round_from_proto(answer.train.round), manifest=signed_from_proto(answer.train.manifest)
            )
        case "open_exchange":
            return OpenExchange(exchange=exchange_from_proto(answer.open_exchange.exchange))
        case "keys":
            return RelayKeys(exchange=exchange_from_proto(answer.keys.exchange), message=answer.keys.keys)
        case "shares":
            return RelayShares(exchange=exchange_from_proto(answer.shares.exchange), message=answer.shares.shares)
        case "survivors":
            relayed = answer.survivors
            return RelaySurvivors(exchange=exchange_from_proto(relayed.exchange), message=relayed.survivors)
        case "confirmations":
            signed = answer.confirmations
            return RelayConfirmations(exchange=exchange_from_proto(signed.exchange), message=signed.confirmations)
        case "result":
            return result_from_proto(answer.result)
        case "abandon":
            return AbandonRound(round=round_from_proto(answer.abandon.round), reason=answer.abandon.reason[:80])
        case _:
            raise InstructionUnknownError("this version does not know the instruction; install a newer one")


def result_from_proto(proto: round_pb2.PublishedResult) -> PublishedResult:
    """Read a published result. Raises IdentifierInvalidError."""
    return PublishedResult(
        exchange=exchange_from_proto(proto.exchange),
        message=proto.result,
        sum_blob_sha256=proto.sum_blob_sha256,
        sum_bytes=proto.sum_bytes,
    )
