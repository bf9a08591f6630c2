"""Wake those who wait: the driver for events, the sites' long polls for instructions.

A wake-up carries nothing and may be lost: the truth is in the database, and whoever waits also looks again from time to
time. Bells ring in this process; what rings in one process is told to the others where the database can tell them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum


class Bell:
    """Rings for all who wait now, and for those who saw an older count."""

    def __init__(self) -> None:
        self._count = 0
        self._n_waiting = 0
        self._rung = asyncio.Event()

    @property
    def count(self) -> int:
        """How often it rang; read it before looking at the database, then wait for another."""
        return self._count

    @property
    def n_waiting(self) -> int:
        """How many wait for it now."""
        return self._n_waiting

    def ring(self) -> None:
        """Wake everybody. Call it in the event loop's thread."""
        self._count += 1
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def wait(self, seen: int, *, timeout_s: float) -> bool:
        """Wait until it has rung since ``seen``; False when ``timeout_s`` passed first."""
        if self._count != seen:
            return True
        self._n_waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return False
        finally:
            self._n_waiting -= 1
        return True


class Waiting(StrEnum):
    """Who is woken; what processes tell each other."""

    DRIVER = "driver"
    SITES = "sites"
    IDENTITIES = "identities"


def _alone(waiting: Waiting) -> None:
    del waiting


class Wakeups:
    """The bells of a process."""

    def __init__(self, *, tell_others: Callable[[Waiting], None] = _alone) -> None:
        """Take how other processes are told; without it there are none, or they look by themselves."""
        self.driver = Bell()
        self.sites = Bell()
        self.identities = Bell()
        self._tell_others = tell_others

    def wake_driver(self) -> None:
        """Something for the driver was committed."""
        self.driver.ring()
        self._tell_others(Waiting.DRIVER)

    def wake_sites(self) -> None:
        """What sites should do may have changed."""
        self.sites.ring()
        self._tell_others(Waiting.SITES)

    def forget_identities(self) -> None:
        """A site was suspended, revoked or let in again: what is remembered of callers is void."""
        self.identities.ring()
        self._tell_others(Waiting.IDENTITIES)

    def hear(self, waiting: Waiting) -> None:
        """Another process committed something; it is not told on."""
        bells = {Waiting.DRIVER: self.driver, Waiting.SITES: self.sites, Waiting.IDENTITIES: self.identities}
        bells[waiting].ring()
