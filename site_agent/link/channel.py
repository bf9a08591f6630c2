"""The dial-out channel: mutual TLS to the gateway, through the hospital's proxy where there is one.

gRPC reconnects by itself, with growing and jittered waits; the keepalive finds a path that a firewall dropped silently
within its two times. The coordinator's listener permits more frequent pings than these.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from site_agent.link.proxy import ProxyRoute

_MAX_MESSAGE_BYTES = 5 << 20
_FIRST_RECONNECT_MS = 500
_LONGEST_RECONNECT_MS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """When a silent connection is asked, and how long its answer may take, in seconds."""

    time_s: float = 30.0
    timeout_s: float = 20.0
    """Long enough for a ping that waits behind an upload on a slow line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """What this site shows, and whom it believes. ``server_name`` is what the gateway's certificate must carry."""

    root_pem: bytes
    certificate_pem: bytes
    private_key_pem: bytes
    server_name: str

    def __repr__(self) -> str:
        """Name the peer; never show the key."""
        return f"TlsIdentity(server_name={self.server_name!r})"


class CallChannel(Protocol):
    """What the generated stubs ask of a channel."""

    def unary_unary(self, method: str, /, **how: object) -> Callable[..., Awaitable[object]]:
        """One request, one answer."""
        ...

    def stream_unary(self, method: str, /, **how: object) -> Callable[..., Awaitable[object]]:
        """Many requests, one answer."""
        ...

    def unary_stream(self, method: str, /, **how: object) -> Callable[..., AsyncIterator[object]]:
        """One request, many answers."""
        ...


def open_channel(
    address: str,
    identity: TlsIdentity,
    *,
    proxy: ProxyRoute | None = None,
    keepalive: Keepalive | None = None,
) -> grpc.aio.Channel:
    """A channel to ``host:port``; it connects when it is first used, and again whenever the connection is lost."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.root_pem,
        private_key=identity.private_key_pem,
        certificate_chain=identity.certificate_pem,
    )
    keepalive = keepalive or Keepalive()
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", int(keepalive.time_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive.timeout_s * 1000)),
        # What counts in this gRPC is how long a ping may go unanswered; by default a minute, whatever the line above.
        ("grpc.http2.ping_timeout_ms", int(keepalive.timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # Two channels of one process share no connection: a probe of the way is a new one.
        ("grpc.use_local_subchannel_pool", 1),
        *grpc_proxy_options(proxy),
    ]
    if identity.server_name and identity.server_name != address.rpartition(":")[0]:
        # The gateway may be reached by an address that its certificate does not name, such as a load balancer's.
        options.append(("grpc.ssl_target_name_override", identity.server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)


def grpc_proxy_options(proxy: ProxyRoute | None) -> list[tuple[str, str | int]]:
    """How gRPC is told which proxy to use, and to look at no environment of its own."""
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    # gRPC holds no_proxy above the option. Whether it applies was decided before, so gRPC is shown an empty list; this
    # variable is its own and nobody else's.
    os.environ["no_grpc_proxy"] = ""  # noqa: SIM112 # as gRPC spells it
    return [("grpc.http_proxy", proxy.grpc_option())]
