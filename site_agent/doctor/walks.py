"""Walks to every listener of the coordinator, all at once, and keeps what was met on the way. Judges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import cast

from cryptography import x509

from fl_protocol.pki.contexts import client_context
from site_agent.doctor.endpoints import Endpoint, Listener, endpoints_of
from site_agent.doctor.resolving import Resolved, resolve
from site_agent.doctor.scene import Scene
from site_agent.doctor.unpinned import look_unpinned, name_of, unchecked_context
from site_agent.enrolment.keystore import KeyStore
from site_agent.errors import LinkError
from site_agent.link.channel import CallChannel, TlsIdentity, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.connecting import WayEndsError, connect_through, secure
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.probe import Step, Way, probe_way

_DIRECT_S = 3.0
_HALF_A_SECOND = timedelta(seconds=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One way, as far as it leads.

    Attributes:
        resolved: what DNS says of the host here; a proxy may know better.
        steps: TCP or CONNECT, TLS, HTTP/2; the last one may have a fault.
        certificate: what was shown, where no root is known yet.
        is_pinned: whether root or code say that it is the coordinator's.
        is_open_without_proxy: None where no proxy is in use.
        answer: a call as this site: None where it was not made or was answered, else the error.
        was_asked: whether that call was made.
        ahead_by: how far this machine's clock is ahead of the coordinator's; None where its time was not heard.
    """

    endpoint: Endpoint
    resolved: Resolved
    steps: tuple[Step, ...]
    certificate: x509.Certificate | None = None
    is_pinned: bool = False
    is_open_without_proxy: bool | None = None
    answer: LinkError | None = None
    was_asked: bool = False
    ahead_by: timedelta | None = None

    @property
    def end(self) -> Step | None:
        """The step at which the way ends; None where it leads there."""
        return next((step for step in self.steps if step.fault is not None), None)

    @property
    def is_open(self) -> bool:
        """Whether the listener was reached, and answered where it was asked."""
        return self.end is None and self.answer is None


def walk_all(scene: Scene) -> tuple[Walk, ...]:
    """Walk to every listener that is named or guessed; dead ways cost their time-outs once, not one after the other.

    Raises:
        WardroundError: settings, identity, keys or the proxy's credentials cannot be used.
    """
    endpoints = endpoints_of(scene)
    identity = _tls_identity(scene)
    if not endpoints:
        return ()
    with ThreadPoolExecutor(max_workers=len(endpoints), thread_name_prefix="walk") as pool:
        return tuple(pool.map(lambda endpoint: _walk(scene, endpoint, identity), endpoints))


def _tls_identity(scene: Scene) -> TlsIdentity | None:
    if not scene.is_enrolled:
        return None
    identity = scene.identity()
    return TlsIdentity(
        root_pem=identity.root_pem,
        certificate_pem=identity.certificate_pem,
        private_key_pem=KeyStore(scene.folder).load_tls_key_pem(),
        server_name=scene.settings().coordinator.server_name or identity.gateway_server_name,
    )


def _walk(scene: Scene, endpoint: Endpoint, identity: TlsIdentity | None) -> Walk:
    resolved = resolve(endpoint.host)
    is_enrolment = endpoint.listener in {Listener.ENROLMENT, Listener.ENROLMENT_HTTP1}
    if identity is None or is_enrolment:
        seen = look_unpinned(endpoint, scene.asked.code)
        walk = Walk(
            endpoint=endpoint,
            resolved=resolved,
            steps=seen.steps,
            certificate=seen.certificate,
            is_pinned=seen.is_pinned,
        )
    else:
        walk = _walk_as_site(endpoint, resolved, identity)
    if endpoint.proxy is not None:
        walk = replace(walk, is_open_without_proxy=_is_open(endpoint))
    if walk.end is None and endpoint.listener.is_http1 and (identity is not None or is_enrolment):
        known = None if is_enrolment else identity
        walk = replace(walk, ahead_by=_clock_ahead(endpoint, known, clock=scene.clock))
    return walk


def _walk_as_site(endpoint: Endpoint, resolved: Resolved, identity: TlsIdentity) -> Walk:
    way = Way(address=endpoint.address, identity=identity, proxy=endpoint.proxy)
    steps = probe_way(way, is_http2=not endpoint.listener.is_http1)
    walk = Walk(endpoint=endpoint, resolved=resolved, steps=steps, is_pinned=True)
    if walk.end is not None:
        return walk
    return replace(walk, answer=asyncio.run(_ask(way, is_http1=endpoint.listener.is_http1)), was_asked=True)


async def _ask(way: Way, *, is_http1: bool) -> LinkError | None:
    """One call as this site: nothing, or the error."""
    channel = (
        Http1Channel(way.address, way.identity, proxy=way.proxy)
        if is_http1
        else open_channel(way.address, way.identity, proxy=way.proxy)
    )
    try:
        await CoordinatorClient(cast("CallChannel", channel), agent_version="doctor").list_pending()
    except LinkError as error:
        return error
    finally:
        await channel.close()
    return None


def _is_open(endpoint: Endpoint) -> bool:
    """Whether TCP stands without the proxy: then the proxy is used and not needed."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=_DIRECT_S):
            return True
    except OSError:
        return False


def _clock_ahead(
    endpoint: Endpoint, identity: TlsIdentity | None, *, clock: Callable[[], datetime]
) -> timedelta | None:
    """This machine's clock less the coordinator's, by the Date of an answer (RFC 9110, 6.6.1), exact to a second."""
    if identity is None:
        context, name = unchecked_context(protocol="http/1.1"), name_of(endpoint.listener)
    else:
        context = client_context(
            root_pem=identity.root_pem,
            certificate_pem=identity.certificate_pem,
            private_key_pem=identity.private_key_pem,
        )
        context.set_alpn_protocols(["http/1.1"])
        name = identity.server_name or endpoint.host
    with contextlib.suppress(OSError, WayEndsError, ssl.SSLError, http.client.HTTPException, ValueError, TypeError):
        connection = connect_through(endpoint.host, endpoint.port, proxy=endpoint.proxy)
        with secure(context, connection, server_name=name) as secured:
            asked = http.client.HTTPConnection(name)
            # The connection exists already; this class would otherwise open one of its own.
            asked.sock = secured
            before = clock()
            asked.request("GET", "/", headers={"connection": "close"})
            said = asked.getresponse().headers["Date"]
            after = clock()
            # The header has whole seconds, cut off: on average half a second has passed since.
            return before + (after - before) / 2 - (parsedate_to_datetime(said) + _HALF_A_SECOND)
    return None
