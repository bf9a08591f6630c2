"""The composition root: makes every part from the settings, runs them in one task group, ends them together.

A part that fails takes the process with it, loudly; a supervisor starts it again, and it continues where it was,
because all state is in the database and the blobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import structlog

from coordinator.authority_watch import AuthorityWatch
from coordinator.ca.key_files import replace_file
from coordinator.db.tx import Database
from coordinator.doctor.live import said_by_process
from coordinator.driver.janitor import Janitor, JanitorSettings
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.installation import CONFIG_FILE, Installation
from coordinator.listeners import open_live, open_rest, open_site_listeners
from coordinator.observation import observe
from coordinator.parts import Parts, ServiceRole, make_parts
from coordinator.replicas import is_database_current, keep_house, serve_file_for
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.release_adapter import create_release
from coordinator.settings import SettingsInvalidError
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId

_log = structlog.get_logger("coordinator.app")

_CHECKPOINT_POLL_S = 5.0
_N_THREADS = 32


class DatabaseOutdatedError(WardroundError):
    """The database lacks the tables of this version."""

    code = "database-outdated"


async def serve(
    installation: Installation, *, roles: frozenset[ServiceRole], clock: Clock, serve_file: Path | None = None
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        installation: the folder.
        roles: what this process does.
        clock: of the whole process.
        serve_file: where it says its addresses; by default see ``serve_file_for``.

    Raises:
        SettingsInvalidError: these roles need a setting that is missing.
        DatabaseUnavailableError: the database has not answered for a minute.
        DatabaseOutdatedError: the database has to be migrated first.
        ListenerError: a port cannot be bound.
        CaError: a key cannot be read.
        ExceptionGroup: a part failed.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=_N_THREADS, thread_name_prefix="wardround"))
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    _check_addresses(installation, roles)
    said_in = serve_file or serve_file_for(installation, roles, all_roles=frozenset(ServiceRole))
    async with _opened_database(installation) as database:
        parts = make_parts(installation, database=database, roles=roles, clock=clock, serve_file=said_in)
        try:
            with _observed(parts, roles) as seen_at:
                await _run(parts, roles=roles, stop=stop, seen_at=seen_at)
        finally:
            _take_back(said_in)
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
    _log.info("coordinator_stopped")


def _check_addresses(installation: Installation, roles: frozenset[ServiceRole]) -> None:
    """Invitations name the enrolment listener: without one of its own, a process has to be told where it is.

    Raises:
        SettingsInvalidError: it was not told.
    """
    is_told = installation.settings.enrolment.advertise is not None
    if ServiceRole.API in roles and ServiceRole.GATEWAY not in roles and not is_told:
        fault = "enrolment.advertise: say host:port where sites enrol, because this process runs api without gateway"
        raise SettingsInvalidError((fault,), path=installation.directory / CONFIG_FILE)


@contextlib.asynccontextmanager
async def _opened_database(installation: Installation) -> AsyncIterator[Database]:
    database = installation.open_database()
    try:
        if not await is_database_current(database):
            raise DatabaseOutdatedError("the database is of another version; run `wardround-coordinator migrate`")
        yield database
    finally:
        database.dispose()


@contextlib.contextmanager
def _observed(parts: Parts, roles: frozenset[ServiceRole]) -> Iterator[dict[str, str]]:
    """While it runs, operators may look; at which address, if any."""
    watch = parts.watch
    listener = observe(
        parts.installation,
        resources=parts.resources,
        engine=parts.engine,
        keys=parts.keys,
        roles=tuple(sorted(role.value for role in roles)),
        last_turn_at=lambda: None if watch.driver is None else watch.driver.last_turn_at,
    )
    try:
        yield {} if listener is None else {"metrics": listener.address}
    finally:
        if listener is not None:
            listener.close()
        parts.resources.tracing.close()


async def _run(parts: Parts, *, roles: frozenset[ServiceRole], stop: asyncio.Event, seen_at: dict[str, str]) -> None:
    listening = (
        *(open_site_listeners(parts) if ServiceRole.GATEWAY in roles else ()),
        *((open_rest(parts),) if ServiceRole.API in roles else ()),
        open_live(parts, roles),
    )
    async with asyncio.TaskGroup() as group:
        cancelled: list[asyncio.Task[None]] = []
        for listener in listening:
            task = await listener.start(group)
            if listener.end is None:
                cancelled.append(task)
        refresh = [listener.refresh for listener in listening if listener.refresh is not None]
        watch = AuthorityWatch(parts.resources.authority, parts.installation.slot_files, refresh=refresh)
        cancelled.append(group.create_task(watch.run(), name="authority"))
        for name, work in _background(parts, roles):
            cancelled.append(group.create_task(work, name=name))
        addresses = {listener.name: listener.address for listener in listening}
        _say_ready(parts.serve_file, {**addresses, **seen_at})
        await stop.wait()
        _log.info("coordinator_stopping")
        for listener in listening:
            if listener.end is not None:
                listener.end()
        for task in cancelled:
            task.cancel()


def _background(parts: Parts, roles: frozenset[ServiceRole]) -> Iterator[tuple[str, Coroutine[object, object, None]]]:
    """What goes on beside the listeners: the driver's work, and what every process does whatever its roles."""
    if ServiceRole.DRIVER in roles:
        yield "driver", _drive(parts)
        yield "checkpoints", _sign_checkpoints(parts)
        yield "janitor", _tidy(parts)
    if parts.notices is not None:
        yield "notices", parts.notices.run()
    lease = timedelta(seconds=parts.installation.settings.driver.lease_s)
    yield "housekeeping", keep_house(parts.engine.db, clock=parts.engine.clock, lease=lease)


async def _drive(parts: Parts) -> None:
    async def release(run_id: RunId) -> None:
        await create_release(parts.resources, run_id)

    settings = parts.installation.settings.driver
    driver = RoundDriver(
        parts.engine,
        create_release=release,
        settings=DriverSettings(poll_s=settings.poll_s, lease=timedelta(seconds=settings.lease_s)),
    )
    parts.watch.driver = driver
    await driver.run()


async def _tidy(parts: Parts) -> None:
    settings = parts.installation.settings.retention
    janitor = Janitor(
        parts.engine,
        settings=JanitorSettings(poll_s=settings.poll_s, grace=timedelta(seconds=settings.orphan_grace_s)),
    )
    await janitor.run()


async def _sign_checkpoints(parts: Parts) -> None:
    every = parts.installation.settings.audit.checkpoint_every
    while True:
        await asyncio.sleep(_CHECKPOINT_POLL_S)
        try:
            await asyncio.to_thread(checkpoint_audit, parts.resources, min_new_events=every)
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            _log.warning("checkpoint_waits_for_database", code=error.code)


def _say_ready(serve_file: Path, addresses: dict[str, str]) -> None:
    nobody: dict[str, str | None] = {"rest": None, "gateway": None, "enrolment": None}
    nobody |= {"gateway_http1": None, "enrolment_http1": None, "metrics": None}
    document = {**nobody, **addresses, "pid": os.getpid(), "machine": socket.gethostname()}
    replace_file(serve_file, json.dumps(document).encode() + b"\n", mode=0o644)
    _log.info("coordinator_ready", **document)


def _take_back(serve_file: Path) -> None:
    """Remove what this process said of itself. What another says that still serves stays, for its healthchecks."""
    said = said_by_process(serve_file)
    if said is not None and said["pid"] == os.getpid():
        serve_file.unlink(missing_ok=True)
