"""The dial-out channel: mutual TLS to the gateway, through the hospital's proxy where ``https_proxy`` names one.

gRPC reconnects by itself, with growing and jittered waits; the keepalive finds a path that a firewall dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import grpc.aio

_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MAX_MESSAGE_BYTES = 5 << 20
_FIRST_RECONNECT_MS = 500
_LONGEST_RECONNECT_MS = 30_000


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


def open_channel(address: str, identity: TlsIdentity) -> grpc.aio.Channel:
    """A channel to ``host:port``; it connects when it is first used, and again whenever the connection is lost."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.root_pem,
        private_key=identity.private_key_pem,
        certificate_chain=identity.certificate_pem,
    )
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ]
    if identity.server_name and identity.server_name != address.rpartition(":")[0]:
        # The gateway may be reached by an address that its certificate does not name, such as a load balancer's.
        options.append(("grpc.ssl_target_name_override", identity.server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)
