"""Which listeners of the coordinator ``doctor`` looks for, and through which proxy.

What was typed comes first, then what is set, then what enrolment told, and the usual ports beside those. Opens no
connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from site_agent.doctor.scene import Scene
from site_agent.enrolment.listener import DEFAULT_HTTP1_PORT, DEFAULT_PORT, split_address
from site_agent.link.proxy import ProxyRoute, address_text, choose_proxy
from site_agent.way_out import NO_FALLBACK

GATEWAY_PORT = 8444
GATEWAY_HTTP1_PORT = 8446


class Listener(StrEnum):
    """The coordinator's listeners for sites."""

    GATEWAY = "gateway"
    ENROLMENT = "enrolment"
    GATEWAY_HTTP1 = "gateway over HTTP/1.1"
    ENROLMENT_HTTP1 = "enrolment over HTTP/1.1"

    @property
    def is_http1(self) -> bool:
        """Whether it is of the second transport, which is only needed where the first does not get through."""
        return self in {Listener.GATEWAY_HTTP1, Listener.ENROLMENT_HTTP1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One listener to look for.

    Attributes:
        is_guessed: nobody named it; its port is the usual one beside what was named.
    """

    listener: Listener
    host: str
    port: int
    proxy: ProxyRoute | None
    is_guessed: bool = False

    @property
    def address(self) -> str:
        """host:port."""
        return address_text(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.listener.value} (at its usual port)" if self.is_guessed else self.listener.value


def endpoints_of(scene: Scene) -> tuple[Endpoint, ...]:
    """What is to be looked for, the gateway first.

    Raises:
        SettingsInvalidError: ``site.yaml`` cannot be used.
        EnrolmentInputError: an address is none.
        ProxyInvalidError, ProxyCredentialsError: the proxy cannot be used.
        NotEnrolledError, EnrolmentAnswerError: the identity is damaged.
    """
    named = _named(scene)
    everything = {**_guessed(named), **named}
    if scene.settings().coordinator.fallback_address == NO_FALLBACK:
        everything.pop(Listener.GATEWAY_HTTP1, None)
    return tuple(
        _endpoint(scene, listener, everything[listener], is_guessed=listener not in named)
        for listener in Listener
        if listener in everything
    )


def _named(scene: Scene) -> dict[Listener, tuple[str, int]]:
    set_in = scene.settings().coordinator
    told = scene.identity() if scene.is_enrolled else None
    addresses = {
        Listener.GATEWAY: scene.asked.coordinator or set_in.address or (told and told.gateway_address),
        Listener.ENROLMENT: scene.asked.enrolment or set_in.enrolment_address or (told and told.enrolment_address),
        Listener.GATEWAY_HTTP1: set_in.fallback_address or (told and told.fallback_address),
    }
    return {
        listener: split_address(address)
        for listener, address in addresses.items()
        if address and address != NO_FALLBACK
    }


def _guessed(named: dict[Listener, tuple[str, int]]) -> dict[Listener, tuple[str, int]]:
    """The coordinator's other listeners, where the named ones have their usual ports."""
    usual = {
        Listener.GATEWAY: GATEWAY_PORT,
        Listener.ENROLMENT: DEFAULT_PORT,
        Listener.GATEWAY_HTTP1: GATEWAY_HTTP1_PORT,
        Listener.ENROLMENT_HTTP1: DEFAULT_HTTP1_PORT,
    }
    hosts = [host for listener, (host, port) in named.items() if port == usual[listener]]
    return {listener: (hosts[0], port) for listener, port in usual.items()} if hosts else {}


def _endpoint(scene: Scene, listener: Listener, place: tuple[str, int], *, is_guessed: bool) -> Endpoint:
    host, port = place
    settings = scene.settings()
    proxy = choose_proxy(
        scene.asked.proxy or settings.coordinator.proxy,
        target=address_text(host, port),
        credentials_file=scene.asked.proxy_credentials_file or settings.proxy_credentials_path,
        environment=scene.environment,
    )
    return Endpoint(listener=listener, host=host, port=port, proxy=proxy, is_guessed=is_guessed)
