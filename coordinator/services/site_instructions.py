"""What a site may be told to do: one value an instruction, as every transport sends it."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.db.exchanges import context_of
from coordinator.db.models import Exchange
from coordinator.errors import NotFoundError
from coordinator.rounds.instructions import RoundRef
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nothing is due."""

    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRound:
    """M0."""

    round: RoundRef
    manifest: SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExchange:
    """Send M1."""

    exchange: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayKeys:
    """M2: send M3."""

    exchange: ExchangeContext
    m2: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayShares:
    """M4: send M5."""

    exchange: ExchangeContext
    m4: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySurvivors:
    """M6: send M7."""

    exchange: ExchangeContext
    m6: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfirmations:
    """M8: send M9."""

    exchange: ExchangeContext
    m8: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """M10, and where the sum is."""

    exchange: ExchangeContext
    m10: bytes
    sum_blob_sha256: str
    sum_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonRound:
    """Forget the round."""

    round: RoundRef
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


def published_result(exchange: Exchange) -> PublishedResult:
    """M10 of an exchange that is SUMMED. Raises NotFoundError where there is none."""
    body, signature = exchange.result_body, exchange.result_signature
    if body is None or signature is None or exchange.sum_blob_sha256 is None or exchange.sum_bytes is None:
        raise NotFoundError("the exchange has no result", run_id=exchange.run_id, round_index=exchange.round_index)
    return PublishedResult(
        exchange=context_of(exchange),
        m10=SignedBody(body=body, signature=signature).encode(),
        sum_blob_sha256=exchange.sum_blob_sha256,
        sum_bytes=exchange.sum_bytes,
    )
