"""The request that a hospital's network team is handed: what has to be opened, why, and what must stay closed.

Filled with the addresses as they resolve here now. Opens no connection to the coordinator.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from site_agent.doctor.endpoints import Endpoint, Listener, endpoints_of
from site_agent.doctor.resolving import Resolved, resolve
from site_agent.doctor.scene import Scene
from site_agent.link.channel import Keepalive

_WHEN: Mapping[Listener, str] = {
    Listener.GATEWAY: "always",
    Listener.ENROLMENT: "at enrolment, and again after the agent was off for more than three days",
    Listener.GATEWAY_HTTP1: "only if HTTP/2 does not get through",
    Listener.ENROLMENT_HTTP1: "only if HTTP/2 does not get through at enrolment",
}
_WHY: Mapping[Listener, str] = {
    Listener.GATEWAY: "instructions and model updates, encrypted and masked; gRPC (HTTP/2) with mutual TLS",
    Listener.ENROLMENT: "the agent's certificate is issued and, after a long pause, recovered; gRPC (HTTP/2) with TLS",
    Listener.GATEWAY_HTTP1: "the same calls as the gateway's; HTTP/1.1 with mutual TLS",
    Listener.ENROLMENT_HTTP1: "the same calls as enrolment's; HTTP/1.1 with TLS",
}
PING_EVERY_S = int(Keepalive().time_s)
LEAST_IDLE_TIMEOUT_S = 60

NOTES = (
    "Outbound only. Nothing listens at the hospital, and nothing has to be opened inbound.",
    (
        "TLS must not be opened (no inspection, no re-signing) to these hosts and ports. Both sides check certificates "
        "of a private authority; there is no setting that would let an inspecting box in."
    ),
    (
        f"The connection to the gateway is long-lived and pinged every {PING_EVERY_S} s. Please forget idle "
        f"connections after no less than {LEAST_IDLE_TIMEOUT_S} s, and end them with a reset instead of silence."
    ),
    "HTTP/2 has to pass inside TLS (ALPN h2); where it does not, the ports over HTTP/1.1 are needed.",
    "Up to some hundred megabytes a round may go out and come in, in messages of at most a few megabytes.",
    "No patient record leaves, and no update that can be read alone (docs/protocol/secagg.md lists every message).",
    "The addresses are today's: please permit by name where the firewall can, and renew them when DNS changes.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One line of the request."""

    source: str
    to: str
    addresses: tuple[str, ...]
    port: int
    protocol: str
    when: str
    why: str

    def document(self) -> Mapping[str, object]:
        """As JSON."""
        return {
            "from": self.source,
            "to": self.to,
            "addresses": list(self.addresses),
            "port": self.port,
            "protocol": self.protocol,
            "direction": "outbound",
            "when": self.when,
            "why": self.why,
            "tls_inspection": "exempt",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallRequest:
    """The whole request."""

    asked_at: datetime
    openings: tuple[Opening, ...]
    proxy: str | None = None
    contact: str = "NAME, TELEPHONE, E-MAIL of who answers questions"

    def document(self) -> Mapping[str, object]:
        """As JSON."""
        return {
            "asked_at": self.asked_at.isoformat(timespec="seconds"),
            "contact": self.contact,
            "proxy": self.proxy,
            "openings": [opening.document() for opening in self.openings],
            "ping_every_s": PING_EVERY_S,
            "least_idle_timeout_s": LEAST_IDLE_TIMEOUT_S,
            "notes": list(NOTES),
        }

    def lines(self) -> Sequence[str]:
        """As text, to be pasted into a ticket."""
        lines = [
            "REQUEST TO OPEN OUTBOUND CONNECTIONS",
            "",
            "For         Wardround, the agent of a hospital in a federated training of a model",
            f"Contact     {self.contact}",
            f"Date        {self.asked_at:%Y-%m-%d}",
            "",
        ]
        for number, opening in enumerate(self.openings, start=1):
            lines += [
                f"{number}. {opening.protocol} to {opening.to} port {opening.port}, outbound",
                f"   from      {opening.source}",
                f"   to        {opening.to}: {', '.join(opening.addresses) or 'address not known here'}",
                f"   needed    {opening.when}",
                f"   why       {opening.why}",
                "   TLS       end to end; exempt from inspection",
                "",
            ]
        lines += ["Notes", *(f"- {note}" for note in NOTES)]
        return lines


def firewall_request(scene: Scene) -> FirewallRequest:
    """The request for the listeners that the scene names.

    Raises:
        WardroundError: settings, identity or the proxy's credentials cannot be used.
    """
    endpoints = endpoints_of(scene)
    hosts = [endpoint.host for endpoint in endpoints]
    hosts += [endpoint.proxy.host for endpoint in endpoints if endpoint.proxy is not None]
    resolved = {host: resolve(host) for host in dict.fromkeys(hosts)}
    return request_for(endpoints, resolved, source=_this_machine(endpoints), asked_at=scene.clock())


def request_for(
    endpoints: Sequence[Endpoint], resolved: Mapping[str, Resolved], *, source: str, asked_at: datetime
) -> FirewallRequest:
    """The request of known things.

    Args:
        endpoints: what is to be reached.
        resolved: the addresses of every host among them, proxies included.
        source: this machine, in words.
        asked_at: for the date.
    """
    proxies = {endpoint.proxy.address: endpoint.proxy for endpoint in endpoints if endpoint.proxy is not None}
    first = tuple(
        Opening(
            source=source,
            to=proxy.host,
            addresses=resolved[proxy.host].addresses,
            port=proxy.port,
            protocol="TCP",
            when="always",
            why="the hospital's own proxy; CONNECT to the hosts and ports below, TLS unopened inside",
        )
        for proxy in proxies.values()
    )
    openings = (*first, *(_opening(endpoint, resolved[endpoint.host], source) for endpoint in endpoints))
    return FirewallRequest(asked_at=asked_at, openings=openings, proxy=next(iter(proxies), None))


def _opening(endpoint: Endpoint, resolved: Resolved, source: str) -> Opening:
    through = "" if endpoint.proxy is None else f"the proxy {endpoint.proxy.address}, by CONNECT of "
    usual = " (its usual port; compare with the invitation)" if endpoint.is_guessed else ""
    return Opening(
        source=through + source,
        to=endpoint.host,
        addresses=resolved.addresses,
        port=endpoint.port,
        protocol="TCP",
        when=_WHEN[endpoint.listener] + usual,
        why=_WHY[endpoint.listener],
    )


def _this_machine(endpoints: Sequence[Endpoint]) -> str:
    """This machine's name, and the address that it would call from; a container's is not what the firewall sees."""
    name = socket.gethostname()
    places = [(one.host, one.port) if one.proxy is None else (one.proxy.host, one.proxy.port) for one in endpoints]
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(*places[0], type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                # A datagram socket that is connected sends nothing; it only chooses its own address.
                probe.connect(place)
                return f"{name}, {probe.getsockname()[0]} (if this is a container: the address of its host)"
    except (OSError, IndexError):
        return name
    return name
