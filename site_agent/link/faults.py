"""What can be wrong with the way to the coordinator: a closed list, and one sentence of advice for each.

gRPC says UNAVAILABLE for nearly all of them; whoever finds out more says it by these words, in the log and ``doctor``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

_PROXY_STATUS = re.compile(r"HTTP proxy returned response code (\d{3})")


class PathFault(StrEnum):
    """Where the way ends."""

    HOST_UNKNOWN = "host-unknown"
    UNREACHABLE = "unreachable"
    PROXY_UNREACHABLE = "proxy-unreachable"
    PROXY_CREDENTIALS = "proxy-credentials"
    PROXY_FORBIDS = "proxy-forbids"
    PROXY_FAILED = "proxy-failed"
    TUNNEL_ENDS = "tunnel-ends"
    TLS_INTERCEPTED = "tls-intercepted"
    TLS_ENDS = "tls-ends"
    CERTIFICATE_WRONG = "certificate-wrong"
    HTTP2_BROKEN = "http2-broken"
    ANSWER_FOREIGN = "answer-foreign"
    SITE_REFUSED = "site-refused"


ADVICE: Mapping[PathFault, str] = {
    PathFault.HOST_UNKNOWN: "Check the name of the host in coordinator.address, and this machine's DNS.",
    PathFault.UNREACHABLE: (
        "Check the address; ask the firewall team to permit outbound TCP to it. Where a proxy is the only way out, "
        "set coordinator.proxy."
    ),
    PathFault.PROXY_UNREACHABLE: "Check coordinator.proxy (or https_proxy): nobody answers at the proxy's address.",
    PathFault.PROXY_CREDENTIALS: (
        "The proxy asks for credentials, or refuses those it gets (407): put user:password into a file of mode 0600 "
        "and name it in coordinator.proxy_credentials_file. Only Basic credentials are supported."
    ),
    PathFault.PROXY_FORBIDS: "Ask the proxy's team to permit CONNECT to this host and port (it answered 403).",
    PathFault.PROXY_FAILED: (
        "The proxy permits the tunnel and cannot build it: ask its team whether it reaches this host and port."
    ),
    PathFault.TUNNEL_ENDS: (
        "The proxy opens the tunnel and ends it before TLS stands: ask its team for an exemption from inspection for "
        "this host and port."
    ),
    PathFault.TLS_INTERCEPTED: "Ask for an exemption from TLS inspection for this host and port.",
    PathFault.TLS_ENDS: (
        "Something ends the connection during the TLS handshake: a firewall that inspects TLS, or another service "
        "on this port."
    ),
    PathFault.CERTIFICATE_WRONG: "Check coordinator.server_name; or the coordinator changed its root: ask its admin.",
    PathFault.HTTP2_BROKEN: (
        "A middlebox breaks HTTP/2. The agent uses HTTP/1.1 by itself where coordinator.fallback_address is known and "
        "its port is open; else ask for an exemption."
    ),
    PathFault.ANSWER_FOREIGN: "Another service answers at this address: check it with the coordinator's admin.",
    PathFault.SITE_REFUSED: "The way is open, and the coordinator refuses this site: ask its admin.",
}


def fault_of_connect_status(status: int) -> PathFault:
    """What a proxy's answer to CONNECT means. RFC 9110: 407 is credentials, 403 is permission, the rest is trouble."""
    if status == 407:
        return PathFault.PROXY_CREDENTIALS
    if status in (403, 405):
        return PathFault.PROXY_FORBIDS
    return PathFault.PROXY_FAILED


def fault_in_grpc_details(details: str) -> PathFault | None:
    """What gRPC's own sentence gives away; None where that is nothing."""
    found = _PROXY_STATUS.search(details)
    return None if found is None else fault_of_connect_status(int(found.group(1)))
