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
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import structlog
import uvicorn

from coordinator.api.main import create_app
from coordinator.ca.authority import GATEWAY_SERVER_NAME
from coordinator.ca.key_files import replace_file
from coordinator.db.migrate import is_current
from coordinator.db.tx import Database
from coordinator.driver.janitor import Janitor, JanitorSettings
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.gateway.http1_server import open_http1_gateway
from coordinator.gateway.server import Listener, ListenerError, open_enrolment, open_gateway
from coordinator.http_server import QuietServer, address_of, bound_socket
from coordinator.installation import Installation, Keys
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.context import EngineContext
from coordinator.services.release_adapter import create_release
from coordinator.services.resources import Addresses, Resources
from coordinator.services.upload_desk import UploadDesk
from coordinator.services.wakeups import Wakeups
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId

_log = structlog.get_logger("coordinator.app")

_STOP_GRACE_S = 2.0
_CHECKPOINT_POLL_S = 5.0
_N_THREADS = 32
_DRIVER_SILENCE = timedelta(seconds=30)


class ServiceRole(StrEnum):
    """What one process does. In a cluster each role is a deployment of its own."""

    API = "api"
    GATEWAY = "gateway"
    DRIVER = "driver"


class DatabaseOutdatedError(WardroundError):
    """The database lacks the tables of this version."""

    code = "database-outdated"


@dataclass(slots=True)
class _DriverWatch:
    """Whether the driver turns; it is made after the parts that ask."""

    clock: Clock
    driver: RoundDriver | None = None

    def is_alive(self) -> bool:
        """Whether it turned lately."""
        last = None if self.driver is None else self.driver.last_turn_at
        return last is not None and self.clock.now() - last <= _DRIVER_SILENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Everything that is made before anything runs."""

    installation: Installation
    keys: Keys
    resources: Resources
    engine: EngineContext
    watch: _DriverWatch


async def serve(installation: Installation, *, roles: frozenset[ServiceRole], clock: Clock) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
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
    async with _opened_database(installation) as database:
        parts = _make_parts(installation, database=database, roles=roles, clock=clock)
        try:
            await _run(parts, roles=roles, stop=stop)
        finally:
            installation.serve_file.unlink(missing_ok=True)
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
    _log.info("coordinator_stopped")


@contextlib.asynccontextmanager
async def _opened_database(installation: Installation) -> AsyncIterator[Database]:
    database = installation.open_database()
    try:
        if not await asyncio.to_thread(is_current, database.engine):
            raise DatabaseOutdatedError("the database is of another version; run `wardround-coordinator migrate`")
        yield database
    finally:
        database.dispose()


def _make_parts(
    installation: Installation, *, database: Database, roles: frozenset[ServiceRole], clock: Clock
) -> _Parts:
    loop = asyncio.get_running_loop()
    keys = installation.load_keys()
    wakeups = Wakeups()
    watch = _DriverWatch(clock=clock)

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
        is_driver_alive=watch.is_alive if ServiceRole.DRIVER in roles else None,
    )
    engine = EngineContext(
        db=database,
        blobs=resources.blobs,
        clock=clock,
        signer=keys.signer,
        wakeups=wakeups,
        origin=resources.origin,
        uploads=UploadDesk(settings.gateway.max_uploads),
    )
    return _Parts(installation=installation, keys=keys, resources=resources, engine=engine, watch=watch)


def _call_soon(loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
    # After a clean stop nobody is left to be woken.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ring)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listening:
    """One listener: its name in ``serve.json``, its address, how it starts, and how it ends (by default cancelled)."""

    name: str
    address: str
    start: Callable[[asyncio.TaskGroup], Coroutine[object, object, asyncio.Task[None]]]
    end: Callable[[], None] | None = None


async def _run(parts: _Parts, *, roles: frozenset[ServiceRole], stop: asyncio.Event) -> None:
    listening = (
        *(_open_listeners(parts) if ServiceRole.GATEWAY in roles else ()),
        *((_open_rest(parts),) if ServiceRole.API in roles else ()),
    )
    async with asyncio.TaskGroup() as group:
        cancelled: list[asyncio.Task[None]] = []
        for listener in listening:
            task = await listener.start(group)
            if listener.end is None:
                cancelled.append(task)
        if ServiceRole.DRIVER in roles:
            cancelled.append(group.create_task(_drive(parts), name="driver"))
            cancelled.append(group.create_task(_sign_checkpoints(parts), name="checkpoints"))
            cancelled.append(group.create_task(_tidy(parts), name="janitor"))
        _say_ready(parts.installation, {listener.name: listener.address for listener in listening})
        await stop.wait()
        _log.info("coordinator_stopping")
        for listener in listening:
            if listener.end is not None:
                listener.end()
        for task in cancelled:
            task.cancel()


def _open_listeners(parts: _Parts) -> tuple[_Listening, ...]:
    """Those for sites. HTTP/1.1 comes after gRPC: while it answers, a site may conclude that the other should."""
    settings = parts.installation.settings
    resources = parts.resources
    identity = resources.authority.issue_server_certificate(
        names=(GATEWAY_SERVER_NAME, *settings.gateway.names), now=resources.now()
    )
    gateway = open_gateway(
        resources, parts.engine, identity=identity, host=settings.gateway.host, port=settings.gateway.port
    )
    enrolment = open_enrolment(
        resources, identity=parts.keys.enrolment, host=settings.enrolment.host, port=settings.enrolment.port
    )
    resources.addresses.gateway = settings.gateway.advertise or gateway.address
    resources.addresses.enrolment = settings.enrolment.advertise or enrolment.address
    opened = (_grpc_listening("gateway", gateway), _grpc_listening("enrolment", enrolment))
    if settings.gateway.http1_port is None:
        return opened
    http1 = open_http1_gateway(
        resources,
        parts.engine,
        identity=identity,
        host=settings.gateway.host,
        port=settings.gateway.http1_port,
        stop_grace_s=_STOP_GRACE_S,
    )
    resources.addresses.fallback = settings.gateway.http1_advertise or http1.address
    return (*opened, _http_listening("gateway_http1", http1.server, http1.socket, end=http1.stop))


def _grpc_listening(name: str, listener: Listener) -> _Listening:
    async def start(group: asyncio.TaskGroup) -> asyncio.Task[None]:
        await listener.server.start()
        return group.create_task(_hold_listener(listener), name=name)

    return _Listening(name=name, address=listener.address, start=start)


def _http_listening(name: str, server: QuietServer, bound: socket.socket, *, end: Callable[[], None]) -> _Listening:
    async def start(group: asyncio.TaskGroup) -> asyncio.Task[None]:
        task = group.create_task(server.serve(sockets=[bound]), name=name)
        await server.is_up.wait()
        return task

    return _Listening(name=name, address=address_of(bound), start=start, end=end)


def _open_rest(parts: _Parts) -> _Listening:
    settings = parts.installation.settings.rest
    identity = parts.resources.authority.issue_server_certificate(names=settings.names, now=parts.resources.now())
    # uvicorn reads its certificate from files; they are made anew at each start.
    certificate = parts.installation.keys_directory / "rest.pem"
    key = parts.installation.keys_directory / "rest.key.pem"
    replace_file(certificate, identity.certificate_pem, mode=0o644)
    replace_file(key, identity.key_pem, mode=0o600)
    config = uvicorn.Config(
        create_app(parts.resources, max_body_bytes=settings.max_body_bytes),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(_STOP_GRACE_S),
    )
    server = QuietServer(config)

    def end() -> None:
        server.should_exit = True

    return _http_listening("rest", server, _bound_socket(settings.host, settings.port), end=end)


def _bound_socket(host: str, port: int) -> socket.socket:
    try:
        return bound_socket(host, port)
    except OSError as error:
        raise ListenerError(
            "the port cannot be bound; is it in use?", listener="rest", address=f"{host}:{port}"
        ) from error


async def _hold_listener(listener: Listener) -> None:
    try:
        await listener.server.wait_for_termination()
    finally:
        await listener.server.stop(_STOP_GRACE_S)


async def _drive(parts: _Parts) -> None:
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


async def _tidy(parts: _Parts) -> None:
    settings = parts.installation.settings.retention
    janitor = Janitor(
        parts.engine,
        settings=JanitorSettings(poll_s=settings.poll_s, grace=timedelta(seconds=settings.orphan_grace_s)),
    )
    await janitor.run()


async def _sign_checkpoints(parts: _Parts) -> None:
    every = parts.installation.settings.audit.checkpoint_every
    while True:
        await asyncio.sleep(_CHECKPOINT_POLL_S)
        await asyncio.to_thread(checkpoint_audit, parts.resources, min_new_events=every)


def _say_ready(installation: Installation, addresses: dict[str, str]) -> None:
    nobody: dict[str, str | None] = {"rest": None, "gateway": None, "enrolment": None, "gateway_http1": None}
    document = {**nobody, **addresses, "pid": os.getpid()}
    replace_file(installation.serve_file, json.dumps(document).encode() + b"\n", mode=0o644)
    _log.info("coordinator_ready", **document)
