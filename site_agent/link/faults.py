"""What can be wrong with the way to the coordinator: a closed list, and one sentence of advice for each.

gRPC says UNAVAILABLE for nearly all of them; whoever finds out more says it by these words, in the log and ``doctor``.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from enum import StrEnum

_PROXY_STATUS = re.compile(r"HTTP proxy returned response code (\d{3})")


class PathFault(StrEnum):
    """Where the way ends."""

    HOST_UNKNOWN = "host-unknown"
    DNS_SILENT = "dns-silent"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    UNREACHABLE = "unreachable"
    PROXY_UNKNOWN = "proxy-unknown"
    PROXY_TIMED_OUT = "proxy-timed-out"
    PROXY_UNREACHABLE = "proxy-unreachable"
    PROXY_CREDENTIALS = "proxy-credentials"
    PROXY_CREDENTIALS_REFUSED = "proxy-credentials-refused"
    PROXY_SCHEME = "proxy-scheme"
    PROXY_FORBIDS = "proxy-forbids"
    PROXY_FAILED = "proxy-failed"
    PROXY_SILENT = "proxy-silent"
    TUNNEL_ENDS = "tunnel-ends"
    TLS_INTERCEPTED = "tls-intercepted"
    TLS_ENDS = "tls-ends"
    CERTIFICATE_WRONG = "certificate-wrong"
    HTTP2_BROKEN = "http2-broken"
    ANSWER_FOREIGN = "answer-foreign"
    SITE_REFUSED = "site-refused"


MEANING: Mapping[PathFault, str] = {
    PathFault.HOST_UNKNOWN: "DNS answers that there is no such name.",
    PathFault.DNS_SILENT: "No DNS server answers this machine.",
    PathFault.REFUSED: "The machine refuses: nothing listens on that port, or a firewall answers in its place.",
    PathFault.TIMED_OUT: "No answer at all: a firewall drops the packets, or the address is not in use.",
    PathFault.UNREACHABLE: "This machine has no route there, or a router says that there is none.",
    PathFault.PROXY_UNKNOWN: "DNS does not know the proxy's name.",
    PathFault.PROXY_TIMED_OUT: "No answer at all at the proxy's address.",
    PathFault.PROXY_UNREACHABLE: "Nobody listens at the proxy's address.",
    PathFault.PROXY_CREDENTIALS: "The proxy asks for credentials (407), and none are configured.",
    PathFault.PROXY_CREDENTIALS_REFUSED: "The proxy refuses the credentials that are configured (407).",
    PathFault.PROXY_SCHEME: "The proxy asks for credentials of a kind other than Basic (407).",
    PathFault.PROXY_FORBIDS: "The proxy forbids CONNECT to this host and port (403 or 405).",
    PathFault.PROXY_FAILED: "The proxy permits the tunnel and cannot build it (502, 503, 504 or another answer).",
    PathFault.PROXY_SILENT: "The proxy takes the connection and does not answer CONNECT.",
    PathFault.TUNNEL_ENDS: "The proxy's tunnel ends before TLS stands.",
    PathFault.TLS_INTERCEPTED: "Another certificate than the coordinator's is shown: something on the way opens TLS.",
    PathFault.TLS_ENDS: "The TLS handshake is cut off.",
    PathFault.CERTIFICATE_WRONG: "The certificate is the coordinator's, and does not fit its name or its time.",
    PathFault.HTTP2_BROKEN: "Everything works but HTTP/2.",
    PathFault.ANSWER_FOREIGN: "Something else than Wardround answers.",
    PathFault.SITE_REFUSED: "The coordinator refuses this site's certificate.",
}

ADVICE: Mapping[PathFault, str] = {
    PathFault.HOST_UNKNOWN: (
        "Check the name of the host; if it is right, ask for it in this machine's DNS. Where only the proxy knows "
        "names of the internet, set coordinator.proxy: it then looks the name up."
    ),
    PathFault.DNS_SILENT: (
        "Check the DNS servers of this machine (/etc/resolv.conf; in a container: the engine's dns), and that port 53 "
        "to them is open. A proxy in coordinator.proxy, given as an address, needs none."
    ),
    PathFault.REFUSED: (
        "Check host and port with the coordinator's admin, and that it runs. If they are right, a firewall refuses: "
        "hand the firewall team what 'wardround-site doctor --firewall' prints."
    ),
    PathFault.TIMED_OUT: (
        "Hand the firewall team what 'wardround-site doctor --firewall' prints. Where a proxy is the only way out, set "
        "coordinator.proxy."
    ),
    PathFault.UNREACHABLE: (
        "Check the address and this machine's routes; ask the firewall team to permit outbound TCP to it. Where a "
        "proxy is the only way out, set coordinator.proxy."
    ),
    PathFault.PROXY_UNKNOWN: "Check the name in coordinator.proxy (or https_proxy), and this machine's DNS.",
    PathFault.PROXY_TIMED_OUT: (
        "Check coordinator.proxy (or https_proxy), and whether this machine may reach the proxy at all."
    ),
    PathFault.PROXY_UNREACHABLE: "Check coordinator.proxy (or https_proxy): nobody answers at the proxy's address.",
    PathFault.PROXY_CREDENTIALS: (
        "The proxy asks for credentials, or refuses those it gets (407): put user:password into a file of mode 0600 "
        "and name it in coordinator.proxy_credentials_file. Only Basic credentials are supported."
    ),
    PathFault.PROXY_CREDENTIALS_REFUSED: (
        "Check user and password in the file that coordinator.proxy_credentials_file names (or in https_proxy): one "
        "line, user:password. Ask the proxy's team whether the account may use CONNECT and whether it is locked."
    ),
    PathFault.PROXY_SCHEME: (
        "Only Basic credentials are supported: ask the proxy's team for an account with Basic, or for a rule that lets "
        "this machine through by its address."
    ),
    PathFault.PROXY_FORBIDS: "Ask the proxy's team to permit CONNECT to this host and port (it answered 403).",
    PathFault.PROXY_FAILED: (
        "The proxy permits the tunnel and cannot build it: ask its team whether it reaches this host and port."
    ),
    PathFault.PROXY_SILENT: (
        "Ask the proxy's team whether CONNECT to this host and port is held back, and whether the port is an HTTP "
        "proxy's at all."
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

NOTHING_LISTENS = frozenset({PathFault.REFUSED, PathFault.TIMED_OUT, PathFault.UNREACHABLE})
"""The way to this port ends here; the one to another port of the same host may not."""


def fault_of_dns(error: socket.gaierror) -> PathFault:
    """Whether a name is unknown or nobody could be asked (RFC 3493, 6.1)."""
    return PathFault.DNS_SILENT if error.errno == socket.EAI_AGAIN else PathFault.HOST_UNKNOWN


def fault_of_connect_error(error: OSError) -> PathFault:
    """Why TCP did not stand: refused by an answer, silence, or no way there."""
    if isinstance(error, ConnectionRefusedError):
        return PathFault.REFUSED
    return PathFault.TIMED_OUT if isinstance(error, TimeoutError) else PathFault.UNREACHABLE


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
