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
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import structlog
import uvicorn

from coordinator.api.main import create_app
from coordinator.api.rate_limits import RateRule, RateRules
from coordinator.authority_watch import AuthorityWatch
from coordinator.ca.authority import GATEWAY_SERVER_NAME
from coordinator.ca.key_files import replace_file
from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database
from coordinator.driver.janitor import Janitor, JanitorSettings
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.gateway.http1_server import open_http1_enrolment, open_http1_gateway
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.gateway.server import Listener, ListenerError, open_enrolment, open_gateway
from coordinator.http_server import QuietServer, address_of, bound_socket
from coordinator.installation import CONFIG_FILE, Installation, Keys
from coordinator.live_listener import LIVE_HOST, live_server
from coordinator.observation import observe, tracing_of
from coordinator.replicas import is_database_current, keep_house, notice_board, serve_file_for
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.context import EngineContext
from coordinator.services.release_adapter import create_release
from coordinator.services.resources import Addresses, Resources
from coordinator.services.upload_desk import UploadDesk
from coordinator.services.wakeups import Waiting, Wakeups
from coordinator.settings import RateLimitSettings, SettingsInvalidError
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
    notices: NoticeBoard | None
    serve_file: Path


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
        parts = _make_parts(installation, database=database, roles=roles, clock=clock, serve_file=said_in)
        try:
            with _observed(parts, roles) as seen_at:
                await _run(parts, roles=roles, stop=stop, seen_at=seen_at)
        finally:
            said_in.unlink(missing_ok=True)
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


def _make_parts(
    installation: Installation,
    *,
    database: Database,
    roles: frozenset[ServiceRole],
    clock: Clock,
    serve_file: Path,
) -> _Parts:
    loop = asyncio.get_running_loop()
    keys = installation.load_keys()
    wakeups, notices = _make_wakeups(installation, database)
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
    return _Parts(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listening:
    """One listener: its name in ``serve.json``, its address, how it starts, and how it ends (by default cancelled)."""

    name: str
    address: str
    start: Callable[[asyncio.TaskGroup], Coroutine[object, object, asyncio.Task[None]]]
    end: Callable[[], None] | None = None
    refresh: Callable[[], object] | None = None


@contextlib.contextmanager
def _observed(parts: _Parts, roles: frozenset[ServiceRole]) -> Iterator[dict[str, str]]:
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


async def _run(parts: _Parts, *, roles: frozenset[ServiceRole], stop: asyncio.Event, seen_at: dict[str, str]) -> None:
    listening = (
        *(_open_listeners(parts) if ServiceRole.GATEWAY in roles else ()),
        *((_open_rest(parts),) if ServiceRole.API in roles else ()),
        _open_live(parts, roles),
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


def _background(parts: _Parts, roles: frozenset[ServiceRole]) -> Iterator[tuple[str, Coroutine[object, object, None]]]:
    """What goes on beside the listeners: the driver's work, and what every process does whatever its roles."""
    if ServiceRole.DRIVER in roles:
        yield "driver", _drive(parts)
        yield "checkpoints", _sign_checkpoints(parts)
        yield "janitor", _tidy(parts)
    if parts.notices is not None:
        yield "notices", parts.notices.run()
    lease = timedelta(seconds=parts.installation.settings.driver.lease_s)
    yield "housekeeping", keep_house(parts.engine.db, clock=parts.engine.clock, lease=lease)


def _open_listeners(parts: _Parts) -> tuple[_Listening, ...]:
    """Those for sites. HTTP/1.1 comes after gRPC: while it answers, a site may conclude that the other should."""
    settings = parts.installation.settings
    resources = parts.resources
    gateway = open_gateway(
        resources,
        parts.engine,
        served=_gateway_identity(parts),
        host=settings.gateway.host,
        port=settings.gateway.port,
    )
    enrolment = open_enrolment(
        resources, identity=parts.keys.enrolment, host=settings.enrolment.host, port=settings.enrolment.port
    )
    resources.addresses.gateway = settings.gateway.advertise or gateway.address
    resources.addresses.enrolment = settings.enrolment.advertise or enrolment.address
    opened = [_grpc_listening("gateway", gateway), _grpc_listening("enrolment", enrolment)]
    if settings.enrolment.http1_port is not None:
        enrolment_http1 = open_http1_enrolment(
            resources,
            identity=parts.keys.enrolment,
            host=settings.enrolment.host,
            port=settings.enrolment.http1_port,
            stop_grace_s=_STOP_GRACE_S,
        )
        opened.append(
            _http_listening("enrolment_http1", enrolment_http1.server, enrolment_http1.socket, end=enrolment_http1.stop)
        )
    if settings.gateway.http1_port is None:
        return tuple(opened)
    http1 = open_http1_gateway(
        resources,
        parts.engine,
        # One of its own: each listener is told once of a change.
        served=_gateway_identity(parts),
        host=settings.gateway.host,
        port=settings.gateway.http1_port,
        stop_grace_s=_STOP_GRACE_S,
    )
    resources.addresses.fallback = settings.gateway.http1_advertise or http1.address
    second = _http_listening("gateway_http1", http1.server, http1.socket, end=http1.stop)
    return (*opened, replace(second, refresh=http1.refresh))


def _gateway_identity(parts: _Parts) -> ServedIdentity:
    names = (GATEWAY_SERVER_NAME, *parts.installation.settings.gateway.names)
    return ServedIdentity(parts.resources.authority, names=names, now=parts.resources.now)


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
    served = ServedIdentity(parts.resources.authority, names=settings.names, now=parts.resources.now)
    identity, _, _ = served.current()
    # uvicorn reads its certificate from files: a private folder of this process's, gone as soon as they are read.
    with tempfile.TemporaryDirectory(prefix="wardround-rest-") as folder:
        certificate, key = Path(folder) / "rest.pem", Path(folder) / "rest.key.pem"
        replace_file(certificate, identity.certificate_pem, mode=0o600)
        replace_file(key, identity.key_pem, mode=0o600)
        config = _rest_config(parts, certificate=certificate, key=key)
        config.load()
    context = config.ssl
    assert context is not None, "the configuration names a certificate"
    server = QuietServer(config)

    def end() -> None:
        server.should_exit = True

    listening = _http_listening("rest", server, _bound_socket(settings.host, settings.port), end=end)
    return replace(listening, refresh=lambda: served.refresh(context, believes_roots=False))


def _open_live(parts: _Parts, roles: frozenset[ServiceRole]) -> _Listening:
    """For `doctor --live` on this machine; its port is chosen and said in the serve file."""
    server = live_server(parts.resources, roles=roles, stop_grace_s=_STOP_GRACE_S)

    def end() -> None:
        server.should_exit = True

    return _http_listening("live", server, _bound_socket(LIVE_HOST, 0, listener="live"), end=end)


def _rest_config(parts: _Parts, *, certificate: Path, key: Path) -> uvicorn.Config:
    settings = parts.installation.settings.rest
    return uvicorn.Config(
        create_app(
            parts.resources,
            max_body_bytes=settings.max_body_bytes,
            rate_rules=_rate_rules(parts.installation.settings.rate_limits),
        ),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        # Failures are counted by address: one that a header names is one that its sender made up.
        proxy_headers=False,
        timeout_graceful_shutdown=int(_STOP_GRACE_S),
    )


def _rate_rules(settings: RateLimitSettings) -> RateRules:
    return RateRules(
        requests=RateRule(per_minute=settings.requests_per_minute, burst=settings.requests_burst),
        failures=RateRule(per_minute=settings.failures_per_minute, burst=settings.failures_burst),
        max_tracked=settings.max_tracked,
    )


def _bound_socket(host: str, port: int, *, listener: str = "rest") -> socket.socket:
    try:
        return bound_socket(host, port)
    except OSError as error:
        raise ListenerError(
            "the port cannot be bound; is it in use?", listener=listener, address=f"{host}:{port}"
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
