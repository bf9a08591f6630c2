"""Which transport the link uses, decided from what its calls met. Pure: instants come in as seconds of one clock.

It begins with gRPC. It looks for another way only after failures of the line (never after a refusal), it goes only
where a fresh attempt of the present way failed and the other one answered, and it comes back by trying now and then.
Invariant: it never flaps. Each return that did not last doubles the pause before the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIN_FAILURES = 3
MIN_FAILING_S = 20.0
LOOK_AGAIN_S = 20.0
FIRST_RETURN_S = 600.0
LONGEST_RETURN_S = 6 * 3600.0
LASTED_S = 3600.0


class Transport(StrEnum):
    """How calls are made."""

    GRPC = "grpc"
    HTTP1 = "http/1.1"


class Look(StrEnum):
    """What is worth finding out now."""

    NOTHING = "nothing"
    HTTP2_ONLY = "http2-only"
    """Only whether HTTP/2 itself is being reset: that is known at once, and is reason enough."""
    OTHER_WAY = "other-way"
    """Whether the present way is dead and the other one lives."""
    RETURN = "return"
    """Whether gRPC works again."""


@dataclass(slots=True)
class TransportChoice:
    """The present transport, and what speaks against it. Without another way there is nothing to choose."""

    has_other: bool
    current: Transport = Transport.GRPC
    n_failures: int = 0
    _failing_since: float | None = None
    _looked_at: float | None = None
    _changed_at: float | None = None
    _return_after_s: float = FIRST_RETURN_S
    _return_at: float = 0.0

    def succeeded(self, transport: Transport, now: float) -> None:
        """A call over this transport was answered, by an answer or a refusal."""
        if transport is not self.current:
            return
        self.n_failures, self._failing_since, self._looked_at = 0, None, None
        if transport is Transport.GRPC and self._changed_at is not None and now - self._changed_at >= LASTED_S:
            self._return_after_s = FIRST_RETURN_S

    def failed(self, transport: Transport, now: float) -> None:
        """A call over this transport failed on its way."""
        if transport is not self.current:
            return
        self.n_failures += 1
        if self._failing_since is None:
            self._failing_since = now

    def look(self, now: float) -> Look:
        """What is worth finding out now; whoever is told so looks, and says that it did."""
        if not self.has_other:
            return Look.NOTHING
        if self._failing_since is None:
            return Look.RETURN if self.current is Transport.HTTP1 and now >= self._return_at else Look.NOTHING
        has_looked = self._looked_at is not None and now - self._looked_at < LOOK_AGAIN_S
        if not has_looked and self.n_failures >= MIN_FAILURES and now - self._failing_since >= MIN_FAILING_S:
            return Look.OTHER_WAY
        is_first = self.current is Transport.GRPC and self._looked_at is None
        return Look.HTTP2_ONLY if is_first else Look.NOTHING

    def looked(self, now: float) -> None:
        """Somebody looked, and the present way stays."""
        self._looked_at = now
        self._return_at = now + self._return_after_s

    def change(self, to: Transport, now: float) -> None:
        """Use the other transport from now on."""
        if to is Transport.HTTP1:
            if self._changed_at is not None and now - self._changed_at < LASTED_S:
                # gRPC was tried again and did not last.
                self._return_after_s = min(self._return_after_s * 2, LONGEST_RETURN_S)
            self._return_at = now + self._return_after_s
        self.current = to
        self._changed_at = now
        self.n_failures, self._failing_since, self._looked_at = 0, None, None
