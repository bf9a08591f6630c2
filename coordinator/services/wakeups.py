"""Wake those of this process who wait: the driver for events, the sites' long polls for instructions.

A wake-up carries nothing and may be lost with the process: the truth is in the database, and whoever waits also looks
again from time to time.
"""

from __future__ import annotations

import asyncio


class Bell:
    """Rings for all who wait now, and for those who saw an older count."""

    def __init__(self) -> None:
        self._count = 0
        self._rung = asyncio.Event()

    @property
    def count(self) -> int:
        """How often it rang; read it before looking at the database, then wait for another."""
        return self._count

    def ring(self) -> None:
        """Wake everybody. Call it in the event loop's thread."""
        self._count += 1
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def wait(self, seen: int, *, timeout_s: float) -> bool:
        """Wait until it has rung since ``seen``; False when ``timeout_s`` passed first."""
        if self._count != seen:
            return True
        try:
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class Wakeups:
    """The two bells of a process."""

    def __init__(self) -> None:
        self.driver = Bell()
        self.sites = Bell()

    def wake_driver(self) -> None:
        """Something for the driver was committed."""
        self.driver.ring()

    def wake_sites(self) -> None:
        """What sites should do may have changed."""
        self.sites.ring()
