"""Which exchange is meant: every signature, key derivation, flag and transcript is bound to these five names.

Knows no message and no key.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import RunId, run_id_from_text
from fl_protocol.packing import pack, text_from_bytes, u32, u32_from_bytes, unpack

_U32_END = 1 << 32


class ContextInvalidError(ProtocolError):
    """A counter that names a round or an exchange is no unsigned 32-bit number."""

    code = "context-invalid"


def check_counter(name: str, value: int) -> None:
    """Check that a counter fits four bytes.

    Raises:
        ContextInvalidError: it does not.
    """
    if not 0 <= value < _U32_END:
        raise ContextInvalidError("a counter is 0 .. 2**32 - 1", name=name, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """One attempt at one round of a run."""

    run_id: RunId
    round_index: int
    round_attempt: int

    def __post_init__(self) -> None:
        run_id_from_text(self.run_id)
        for name in ("round_index", "round_attempt"):
            check_counter(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeContext:
    """One attempt at one secure sum. Invariant: attempts only rise, and no two exchanges have the same context."""

    run_id: RunId
    round_index: int
    round_attempt: int
    exchange_index: int
    exchange_attempt: int

    def __post_init__(self) -> None:
        run_id_from_text(self.run_id)
        for name in ("round_index", "round_attempt", "exchange_index", "exchange_attempt"):
            check_counter(name, getattr(self, name))

    def encode(self) -> bytes:
        """``pack(run_id, u32(round_index), u32(round_attempt), u32(exchange_index), u32(exchange_attempt))``."""
        return pack(
            self.run_id.encode(),
            u32(self.round_index),
            u32(self.round_attempt),
            u32(self.exchange_index),
            u32(self.exchange_attempt),
        )

    @classmethod
    def decode(cls, data: bytes) -> ExchangeContext:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError."""
        run_id, *counters = unpack(data, 5)
        round_index, round_attempt, exchange_index, exchange_attempt = map(u32_from_bytes, counters)
        return cls(
            run_id=run_id_from_text(text_from_bytes(run_id)),
            round_index=round_index,
            round_attempt=round_attempt,
            exchange_index=exchange_index,
            exchange_attempt=exchange_attempt,
        )
