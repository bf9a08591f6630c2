"""What an upload and a download have in common: how long silence may last. "Late" is not "dead".

There is one deadline, ``IDLE_DEADLINE_S``, and it is by progress: a transfer ends in failure when no new byte came
through for that long, however many attempts were made meanwhile and however long it takes as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fl_protocol.codec.chunks import IDLE_DEADLINE_S
from site_agent.errors import CoordinatorBusyError, CoordinatorUnavailableError, LinkError, TransferIdleError
from site_agent.link.backoff import Backoff

__all__ = ["IDLE_DEADLINE_S", "Patience", "Pulse", "moving_call"]


class Pulse:
    """The deadline of one call that moves: each ``beat`` puts it off."""

    def __init__(self, cut: asyncio.Timeout, idle_s: float) -> None:
        """Take the deadline and how far it is put off."""
        self._cut = cut
        self._idle_s = idle_s

    def beat(self) -> None:
        """Something moved."""
        if not self._cut.expired():
            self._cut.reschedule(asyncio.get_running_loop().time() + self._idle_s)


@asynccontextmanager
async def moving_call(call: str, *, idle_s: float) -> AsyncIterator[Pulse]:
    """A call that is not cut while it moves.

    Raises:
        CoordinatorUnavailableError: nothing moved for ``idle_s``.
    """
    try:
        async with asyncio.timeout(idle_s) as cut:
            yield Pulse(cut, idle_s)
    except TimeoutError as error:
        raise CoordinatorUnavailableError("the line is open and nothing moves on it", call=call) from error


class Patience:
    """How long a transfer goes on trying: until no new byte came through for the idle deadline."""

    def __init__(self, backoff: Backoff, *, idle_s: float) -> None:
        """Begin now, with no byte."""
        self._backoff = backoff
        self._idle_s = idle_s
        self._furthest = -1
        self._moved_at = _now()

    def reached(self, n_bytes: int) -> None:
        """So many bytes are through; more than ever before is progress."""
        if n_bytes > self._furthest:
            self._furthest = n_bytes
            self._moved_at = _now()
            self._backoff.reset()

    async def wait(self, error: LinkError) -> None:
        """Wait before the next attempt.

        Raises:
            TransferIdleError: there was no new byte for the idle deadline.
        """
        if isinstance(error, CoordinatorBusyError):
            # It is there and has asked us to wait: neither a failure nor silence.
            self._moved_at = _now()
            await asyncio.sleep(error.retry_after_s * self._backoff.spread())
            return
        wait_s = self._backoff.next_wait_s()
        idle_s = _now() - self._moved_at
        if idle_s + wait_s > self._idle_s:
            raise TransferIdleError(
                "no byte came through for the idle deadline; the transfer is given up until it is asked for again",
                idle_s=round(idle_s, 1),
                n_bytes=max(self._furthest, 0),
                cause=error.code,
            ) from error
        await asyncio.sleep(wait_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
