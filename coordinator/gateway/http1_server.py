"""The listeners of the second transport: HTTP/1.1 under the same TLS as the first, mutual but for enrolment.

A handshake without a certificate of the root does not complete; behind it, the certificate goes with every request, so
that the admission sees it, and a connection without one is closed before a byte of it is read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.ca.authority import ServerIdentity
from coordinator.gateway.admission import Admission
from coordinator.gateway.enrolment_servicer import EnrolmentServicer, IdentityServicer
from coordinator.gateway.http1_app import PEER_CERTIFICATE, Http1Gateway, enrolment_handlers, gateway_handlers
from coordinator.gateway.round_servicer import RoundServicer
from coordinator.gateway.run_servicer import RunServicer
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.gateway.server import identify_by
from coordinator.http_server import QuietServer, address_of, bound_socket, quiet_server
from coordinator.services.context import EngineContext
from coordinator.services.resources import Resources
from fl_protocol.pki.contexts import open_server_context, server_context

_KEEP_ALIVE_S = 75
"""Longer than a site keeps a connection idle, so that the site is the one who closes it."""
_MAX_CONNECTIONS = 2048
_MAX_CONCURRENT_ENROLMENTS = 32


class _MutualTlsProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with the peer's certificate in the state of every request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the certificate. Invariant: no request is read on a connection that has none."""
        secured = transport.get_extra_info("ssl_object")
        certificate = None if secured is None else secured.getpeercert(binary_form=True)
        self.app_state = {**self.app_state, PEER_CERTIFICATE: certificate}
        super().connection_made(transport)
        if certificate is None:
            transport.abort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Listener:
    """A server that has its port and has not started yet."""

    server: QuietServer
    app: Http1Gateway
    socket: socket.socket
    context: ssl.SSLContext
    refresh: Callable[[], bool] = lambda: False
    """Shows and believes what the authority is now, from the next handshake on."""

    @property
    def address(self) -> str:
        """host:port as it is bound."""
        return address_of(self.socket)

    def stop(self) -> None:
        """End: calls that wait are told to come again."""
        self.app.stop()
        self.server.should_exit = True


def open_http1_gateway(
    resources: Resources,
    engine: EngineContext,
    *,
    served: ServedIdentity,
    host: str,
    port: int,
    stop_grace_s: float,
) -> Http1Listener:
    """The listener for enrolled sites whose network breaks HTTP/2.

    Raises:
        ListenerError: the port cannot be bound.
    """
    app = Http1Gateway(
        admission=Admission(
            identify=identify_by(resources, engine.wakeups.identities),
            changes=engine.wakeups.identities,
            meter=resources.meter,
            tracing=resources.tracing,
        ),
        handlers=gateway_handlers(RoundServicer(engine), RunServicer(resources), IdentityServicer(resources)),
    )
    bound = bound_socket(host, port, listener="gateway http/1.1")
    identity, roots, _ = served.current()
    listener = http1_listener(app, bound, root_pem=roots, identity=identity, grace_s=stop_grace_s)
    return replace(listener, refresh=lambda: served.refresh(listener.context, believes_roots=True))


def open_http1_enrolment(
    resources: Resources, *, identity: ServerIdentity, host: str, port: int, stop_grace_s: float
) -> Http1Listener:
    """The listener for sites that hold an enrolment code and whose network breaks HTTP/2.

    It shows the certificate that the code names, as its sister over gRPC does, asks for none, and serves one call.

    Raises:
        ListenerError: the port cannot be bound.
    """
    app = Http1Gateway(
        admission=Admission(identify=None, meter=resources.meter, tracing=resources.tracing),
        handlers=enrolment_handlers(EnrolmentServicer(resources)),
    )
    bound = bound_socket(host, port, listener="enrolment http/1.1")
    context = open_server_context(certificate_pem=identity.certificate_pem, private_key_pem=identity.key_pem)
    return _listener(
        app, bound, context, protocol=H11Protocol, max_connections=_MAX_CONCURRENT_ENROLMENTS, grace_s=stop_grace_s
    )


def http1_listener(
    app: Http1Gateway, bound: socket.socket, *, root_pem: bytes, identity: ServerIdentity, grace_s: float
) -> Http1Listener:
    """The application behind mutual TLS on a socket that has its port."""
    context = server_context(
        root_pem=root_pem, certificate_pem=identity.certificate_pem, private_key_pem=identity.key_pem
    )
    return _listener(
        app, bound, context, protocol=_MutualTlsProtocol, max_connections=_MAX_CONNECTIONS, grace_s=grace_s
    )


def _listener(
    app: Http1Gateway,
    bound: socket.socket,
    context: ssl.SSLContext,
    *,
    protocol: type[H11Protocol],
    max_connections: int,
    grace_s: float,
) -> Http1Listener:
    server = quiet_server(
        app,
        grace_s=grace_s,
        context=context,
        protocol=protocol,
        keep_alive_s=_KEEP_ALIVE_S,
        max_connections=max_connections,
    )
    return Http1Listener(server=server, app=app, socket=bound, context=context)
