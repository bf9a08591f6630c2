"""From settings and identity to the ways out of the hospital. Part of the composition roots: daemon and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import split_address
from site_agent.link.channel import Keepalive, TlsIdentity
from site_agent.link.link_channel import LinkOptions
from site_agent.link.probe import Way
from site_agent.link.proxy import address_text, choose_proxy
from site_agent.settings import SiteSettings

NO_FALLBACK = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """The way to the gateway, and the one over HTTP/1.1 where its address is known."""

    gateway: Way
    fallback: Way | None

    def link_options(self) -> LinkOptions:
        """What the link is made of."""
        return LinkOptions(way=self.gateway, fallback=self.fallback, keepalive=Keepalive())


def find_way_out(settings: SiteSettings, identity: SiteIdentity, *, environment: Mapping[str, str]) -> WayOut:
    """The ways of an enrolled site. What ``site.yaml`` says stands above what enrolment was told.

    Raises:
        ProxyInvalidError, ProxyCredentialsError: the proxy cannot be used.
        EnrolmentInputError: an address is none.
        KeyMissingError, KeyPermissionsError, KeyDamagedError: the TLS key cannot be read.
    """
    coordinator = settings.coordinator
    tls = TlsIdentity(
        root_pem=identity.root_pem,
        certificate_pem=identity.certificate_pem,
        private_key_pem=KeyStore(settings.folder).load_tls_key_pem(),
        server_name=coordinator.server_name or identity.gateway_server_name,
    )

    def way(address: str) -> Way:
        target = address_text(*split_address(address))
        proxy = choose_proxy(
            coordinator.proxy,
            target=target,
            credentials_file=settings.proxy_credentials_path,
            environment=environment,
        )
        return Way(address=target, identity=tls, proxy=proxy)

    fallback = coordinator.fallback_address or identity.fallback_address
    return WayOut(
        gateway=way(coordinator.address or identity.gateway_address),
        fallback=None if not fallback or fallback == NO_FALLBACK else way(fallback),
    )
