"""The two listeners for sites, because gRPC in Python knows no optional client certificate.

Mutual TLS for sites that are enrolled; TLS with a certificate that is pinned in the enrolment code for the one call of
those that are not yet.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

import grpc

from coordinator.ca.authority import ServerIdentity
from coordinator.errors import ListenerError
from coordinator.gateway.admission import IdentifySite
from coordinator.gateway.enrolment_servicer import EnrolmentServicer, IdentityServicer
from coordinator.gateway.interceptors import GatewayInterceptor
from coordinator.gateway.round_servicer import RoundServicer
from coordinator.gateway.run_servicer import RunServicer
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.services.context import EngineContext
from coordinator.services.identify_site import CallingSite, identify_site
from coordinator.services.resources import Resources
from coordinator.services.wakeups import Bell
from fl_protocol.ids import SiteId
from fl_protocol.wire.v1 import enrolment_pb2_grpc, round_pb2_grpc, run_pb2_grpc

MAX_MESSAGE_BYTES = 5 << 20
_MIN_PING_INTERVAL_MS = 20_000
_MAX_CONNECTION_AGE_MS = 6 * 3600 * 1000
_CONNECTION_GRACE_MS = 3600 * 1000
_MAX_CONCURRENT_ENROLMENTS = 32
_REMEMBERED_S = 0.5
_MAX_REMEMBERED = 4096
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # gRPC's own name for the least interval between pings that it receives; below the 30 s that sites keep.
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    # Sites ping through long polls and while they train; without this they are told too_many_pings.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # A connection ends now and then, so that a renewed certificate comes into use.
    ("grpc.max_connection_age_ms", _MAX_CONNECTION_AGE_MS),
    ("grpc.max_connection_age_grace_ms", _CONNECTION_GRACE_MS),
    # Two processes on one port would split the sites between them, silently.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A server that has its port and has not started yet."""

    server: grpc.aio.Server
    host: str
    port: int

    @property
    def address(self) -> str:
        """host:port as it is bound."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def identify_by(resources: Resources, changes: Bell) -> IdentifySite:
    """How a certificate becomes a site, asked on every call of either transport.

    The answer is remembered for half a second, or until ``changes`` rings: a site calls twenty times a round, in
    bursts. What a site may do is checked again in the transaction that does it.
    """
    known: OrderedDict[tuple[SiteId, str], tuple[float, int, CallingSite]] = OrderedDict()

    async def identify(site_id: SiteId, certificate_sha256: str) -> CallingSite:
        key, at, n_changes = (site_id, certificate_sha256), time.monotonic(), changes.count
        held = known.get(key)
        if held is not None and at - held[0] < _REMEMBERED_S and held[1] == n_changes:
            return held[2]
        site = await asyncio.to_thread(identify_site, resources, site_id=site_id, certificate_sha256=certificate_sha256)
        known[key] = (at, n_changes, site)
        known.move_to_end(key)
        while len(known) > _MAX_REMEMBERED:
            known.popitem(last=False)
        return site

    return identify


def open_gateway(
    resources: Resources, engine: EngineContext, *, served: ServedIdentity, host: str, port: int
) -> Listener:
    """The listener for enrolled sites: only certificates of a trusted root's get through the handshake.

    Raises:
        ListenerError: the port cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=[
            GatewayInterceptor(
                identify=identify_by(resources, engine.wakeups.identities),
                changes=engine.wakeups.identities,
                meter=resources.meter,
                tracing=resources.tracing,
            )
        ],
        options=SERVER_OPTIONS,
    )
    round_pb2_grpc.add_RoundServiceServicer_to_server(RoundServicer(engine), server)
    run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(resources), server)
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(IdentityServicer(resources), server)
    return _bind(server, served.grpc_credentials(), host=host, port=port, name="gateway")


def open_enrolment(resources: Resources, *, identity: ServerIdentity, host: str, port: int) -> Listener:
    """The listener for sites that hold an enrolment code and nothing else yet.

    Raises:
        ListenerError: the port cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=[GatewayInterceptor(identify=None, meter=resources.meter, tracing=resources.tracing)],
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=_MAX_CONCURRENT_ENROLMENTS,
    )
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(EnrolmentServicer(resources), server)
    credentials = grpc.ssl_server_credentials([(identity.key_pem, identity.certificate_pem)])
    return _bind(server, credentials, host=host, port=port, name="enrolment")


def _bind(server: grpc.aio.Server, credentials: grpc.ServerCredentials, *, host: str, port: int, name: str) -> Listener:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise ListenerError("the port cannot be bound; is it in use?", listener=name, address=target) from error
    if bound == 0:
        raise ListenerError("the port cannot be bound; is it in use?", listener=name, address=target)
    return Listener(server=server, host=host, port=bound)
