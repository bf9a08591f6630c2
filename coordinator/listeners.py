"""The listeners of a coordinator's process: for sites, for people, and for healthchecks on this machine.

Each is bound when it is opened, so that its address is known before it answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

from coordinator.api.main import create_app
from coordinator.api.rate_limits import RateRule, RateRules
from coordinator.ca.authority import GATEWAY_SERVER_NAME
from coordinator.gateway.http1_server import open_http1_enrolment, open_http1_gateway
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.gateway.server import Listener, open_enrolment, open_gateway
from coordinator.http_server import QuietServer, address_of, bound_socket, quiet_server
from coordinator.live_listener import LIVE_HOST, live_server
from coordinator.parts import Parts, ServiceRole
from coordinator.settings import RateLimitSettings
from fl_protocol.pki.contexts import open_server_context

_STOP_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """One listener: its name in ``serve.json``, its address, how it starts, and how it ends (by default cancelled)."""

    name: str
    address: str
    start: Callable[[asyncio.TaskGroup], Coroutine[object, object, asyncio.Task[None]]]
    end: Callable[[], None] | None = None
    refresh: Callable[[], object] | None = None


def open_site_listeners(parts: Parts) -> tuple[Listening, ...]:
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


def _gateway_identity(parts: Parts) -> ServedIdentity:
    names = (GATEWAY_SERVER_NAME, *parts.installation.settings.gateway.names)
    return ServedIdentity(parts.resources.authority, names=names, now=parts.resources.now)


def _grpc_listening(name: str, listener: Listener) -> Listening:
    async def start(group: asyncio.TaskGroup) -> asyncio.Task[None]:
        await listener.server.start()
        return group.create_task(_hold_listener(listener), name=name)

    return Listening(name=name, address=listener.address, start=start)


def _http_listening(name: str, server: QuietServer, bound: socket.socket, *, end: Callable[[], None]) -> Listening:
    async def start(group: asyncio.TaskGroup) -> asyncio.Task[None]:
        task = group.create_task(server.serve(sockets=[bound]), name=name)
        await server.is_up.wait()
        return task

    return Listening(name=name, address=address_of(bound), start=start, end=end)


def open_rest(parts: Parts) -> Listening:
    """The one for people, over HTTPS; its certificate follows the authority's."""
    settings = parts.installation.settings.rest
    served = ServedIdentity(parts.resources.authority, names=settings.names, now=parts.resources.now)
    identity, _, _ = served.current()
    context = open_server_context(certificate_pem=identity.certificate_pem, private_key_pem=identity.key_pem)
    app = create_app(
        parts.resources,
        max_body_bytes=settings.max_body_bytes,
        rate_rules=_rate_rules(parts.installation.settings.rate_limits),
    )
    server = quiet_server(app, grace_s=_STOP_GRACE_S, context=context)

    def end() -> None:
        server.should_exit = True

    listening = _http_listening("rest", server, bound_socket(settings.host, settings.port, listener="rest"), end=end)
    return replace(listening, refresh=lambda: served.refresh(context, believes_roots=False))


def open_live(parts: Parts, roles: frozenset[ServiceRole]) -> Listening:
    """For `doctor --live` on this machine; its port is chosen and said in the serve file."""
    server = live_server(parts.resources, roles=roles, stop_grace_s=_STOP_GRACE_S)

    def end() -> None:
        server.should_exit = True

    return _http_listening("live", server, bound_socket(LIVE_HOST, 0, listener="live"), end=end)


def _rate_rules(settings: RateLimitSettings) -> RateRules:
    return RateRules(
        requests=RateRule(per_minute=settings.requests_per_minute, burst=settings.requests_burst),
        failures=RateRule(per_minute=settings.failures_per_minute, burst=settings.failures_burst),
        max_tracked=settings.max_tracked,
    )


async def _hold_listener(listener: Listener) -> None:
    try:
        await listener.server.wait_for_termination()
    finally:
        await listener.server.stop(_STOP_GRACE_S)
