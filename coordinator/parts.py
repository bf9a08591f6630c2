"""What a coordinator's process is made of, made from its settings before anything runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database
from coordinator.driver.round_driver import RoundDriver
from coordinator.installation import Installation, Keys
from coordinator.observation import tracing_of
from coordinator.replicas import notice_board
from coordinator.services.context import EngineContext
from coordinator.services.resources import Addresses, Resources
from coordinator.services.upload_desk import UploadDesk
from coordinator.services.wakeups import Waiting, Wakeups
from fl_protocol.clock import Clock

_DRIVER_SILENCE = timedelta(seconds=30)


class ServiceRole(StrEnum):
    """What one process does. In a cluster each role is a deployment of its own."""

    API = "api"
    GATEWAY = "gateway"
    DRIVER = "driver"


@dataclass(slots=True)
class DriverWatch:
    """Whether the driver turns; it is made after the parts that ask."""

    clock: Clock
    driver: RoundDriver | None = None

    def is_alive(self) -> bool:
        """Whether it turned lately."""
        last = None if self.driver is None else self.driver.last_turn_at
        return last is not None and self.clock.now() - last <= _DRIVER_SILENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that is made before anything runs."""

    installation: Installation
    keys: Keys
    resources: Resources
    engine: EngineContext
    watch: DriverWatch
    notices: NoticeBoard | None
    serve_file: Path


def make_parts(
    installation: Installation,
    *,
    database: Database,
    roles: frozenset[ServiceRole],
    clock: Clock,
    serve_file: Path,
) -> Parts:
    """Make every part from the settings, inside the loop that they will run in.

    Raises:
        CaError: a key cannot be read.
    """
    loop = asyncio.get_running_loop()
    keys = installation.load_keys()
    wakeups, notices = _make_wakeups(installation, database)
    watch = DriverWatch(clock=clock)

    def from_any_thread(ring: Callable[[], None]) -> Callable[[], None]:
        return lambda: _call_soon(loop, ring)

    settings = installation.settings
    resources = installation.resources(
        database=database,
        keys=keys,
        clock=clock,
        addresses=Addresses(
            gateway=settings.gateway.advertise or "",
            enrolment=settings.enrolment.advertise or "",
            fallback=settings.gateway.http1_advertise or "",
        ),
        wake_driver=from_any_thread(wakeups.wake_driver),
        wake_sites=from_any_thread(wakeups.wake_sites),
        forget_identities=from_any_thread(wakeups.forget_identities),
        is_driver_alive=watch.is_alive if ServiceRole.DRIVER in roles else None,
    )
    resources = replace(resources, tracing=tracing_of(installation))
    engine = EngineContext(
        db=database,
        blobs=resources.blobs,
        clock=clock,
        signer=keys.signer,
        wakeups=wakeups,
        origin=resources.origin,
        uploads=UploadDesk(settings.gateway.max_uploads),
        meter=resources.meter,
        tracing=resources.tracing,
    )
    return Parts(
        installation=installation,
        keys=keys,
        resources=resources,
        engine=engine,
        watch=watch,
        notices=notices,
        serve_file=serve_file,
    )


def _make_wakeups(installation: Installation, database: Database) -> tuple[Wakeups, NoticeBoard | None]:
    """The bells, and how other processes hear them: over PostgreSQL; on SQLite they look by themselves."""
    if not database.is_server:
        return Wakeups(), None

    def hear(waiting: Waiting) -> None:
        wakeups.hear(waiting)

    notices = notice_board(installation, database, hear=hear)
    wakeups = Wakeups(tell_others=lambda waiting: notices.post(waiting.value))
    return wakeups, notices


def _call_soon(loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
    # After a clean stop nobody is left to be woken.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ring)
