"""Ends a call that lasts when its site may not act any more: a stream, or a long poll, was admitted before.

Most calls are over before anything is watched. One that lasts is asked about again when the bell of identities rings,
and now and then without it, because a ring may be lost between processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import CertificateEndedError, CertificateUnknownError
from coordinator.services.wakeups import Bell
from fl_protocol.errors import WardroundError

WATCHED_AFTER_S = 0.25
LOOK_AGAIN_S = 30.0

_log = structlog.get_logger("coordinator.gateway")


class CallWatch:
    """Of one call. ``refusal`` is why it was ended, if it was."""

    def __init__(self, changes: Bell, identify: Callable[[], Awaitable[object]]) -> None:
        """Begin with what was known at admission.

        Args:
            changes: rings when a site was suspended, revoked or let in again.
            identify: asks again who calls; raises where nobody may.
        """
        self._changes = changes
        self._seen = changes.count
        self._identify = identify
        self.refusal: WardroundError | None = None

    @asynccontextmanager
    async def watching(self, end: Callable[[], None]) -> AsyncIterator[None]:
        """Watch while the block lasts; ``end`` is called once, when it must not go on."""
        watcher: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        later = loop.call_later(WATCHED_AFTER_S, lambda: watcher.append(loop.create_task(self._watch(end))))
        try:
            yield
        finally:
            later.cancel()
            for task in watcher:
                task.cancel()

    async def _watch(self, end: Callable[[], None]) -> None:
        while True:
            await self._changes.wait(self._seen, timeout_s=LOOK_AGAIN_S)
            self._seen = self._changes.count
            try:
                await self._identify()
            except CertificateEndedError:
                # It was good when the call began, and its site may act: the next call is made by the one after it.
                continue
            except (SiteNotActiveError, CertificateUnknownError) as refusal:
                self.refusal = refusal
                end()
                return
            except WardroundError:
                # The database is away, say. Nothing was said against the site, and each of its steps is checked anyway.
                continue
            except Exception:  # noqa: BLE001 # in the log, and looked at again
                # A fault of ours must not leave the call unwatched: the next look may be the one that ends it.
                _log.exception("identity_not_looked_at")
