"""Which trace a thing belongs to. It follows from what the thing is, so that nobody has to be told (decision 0067).

A round's attempt is one trace: its identifier, and that of its first span, are digests of the run's identifier and the
round's numbers. Coordinator, sites and whoever reads a log line with ``run_id`` and ``round_index`` find the same one,
also after a restart, and no message of the protocol carries it. Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from fl_protocol.packing import pack, u32

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_DOMAIN = b"wardround/trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceIds:
    """A trace, and one span in it, as W3C Trace Context numbers them; neither is 0."""

    trace_id: int
    span_id: int

    def traceparent(self) -> str:
        """The header's text."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


def run_trace(run_id: str) -> TraceIds:
    """The trace of a run as a whole: what people did to it, and its release."""
    return _of(pack(_DOMAIN, run_id.encode()))


def round_trace(run_id: str, round_index: int, round_attempt: int) -> TraceIds:
    """The trace of one attempt at a round, and its first span, below which all others hang."""
    return _of(pack(_DOMAIN, run_id.encode(), u32(round_index), u32(round_attempt)))


def ids_from_traceparent(text: str) -> TraceIds | None:
    """What a ``traceparent`` names; None where it names nothing. It proves nothing either."""
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None:
        return None
    ids = TraceIds(trace_id=int(found[1], 16), span_id=int(found[2], 16))
    return ids if ids.trace_id and ids.span_id else None


def _of(name: bytes) -> TraceIds:
    digest = hashlib.sha256(name).digest()
    # A digest of zeros has yet to be found; the standard forbids it, so it becomes a one.
    return TraceIds(trace_id=int.from_bytes(digest[:16]) or 1, span_id=int.from_bytes(digest[16:24]) or 1)
