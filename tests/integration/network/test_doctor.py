"""``doctor`` finds out where the way to the coordinator ends, and names it: every line, well and broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from coordinator.ca.authority import GATEWAY_SERVER_NAME
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.keys import private_key_from_pem
from fl_protocol.pki.tls import certificate_fingerprint
from fl_protocol.testing.entropy import seeded_signer
from site_agent.cli.check_results import CheckResult, Health
from site_agent.cli.network_checks import network_checks
from site_agent.enrolment.identity_file import SiteIdentity, load_identity, save_identity
from site_agent.errors import ProxyCredentialsError
from site_agent.folder import SiteFolder
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway
from tests.support.relay import ConnectProxy, Http2Breaker, Relay, TlsInterceptor


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest_asyncio.fixture
async def gateway(pki: Pki) -> AsyncIterator[Gateway]:
    async with running_gateway(pki, KeepingServicer()) as running:
        yield running


@pytest.fixture
def relays() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def site(tmp_path: Path, pki: Pki, gateway: Gateway) -> SiteFolder:
    folder = SiteFolder(root=tmp_path / "site")
    shown = pki.site("st-mary")
    folder.keys_dir.mkdir(mode=0o700, parents=True)
    assert private_key_from_pem(shown.private_key_pem)
    folder.tls_key.touch(mode=0o600)
    folder.tls_key.write_bytes(shown.private_key_pem)
    identity = SiteIdentity(
        site_id=SiteId("st-mary"),
        gateway_address=gateway.grpc_address,
        gateway_server_name=GATEWAY_SERVER_NAME,
        signing_key_sha256=Sha256Hex("ab" * 32),
        coordinator_signing_spki=seeded_signer("coordinator").spki_der,
        certificate_pem=shown.certificate_pem,
        root_pem=pki.root_pem,
        root_sha256=certificate_fingerprint(pki.root),
        enrolled_at=datetime(2026, 1, 1, tzinfo=UTC),
        fallback_address=gateway.http1_address,
    )
    save_identity(folder, identity)
    assert load_identity(folder) == identity
    return folder


Look = Callable[..., object]


@pytest.fixture
def look(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> Look:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def run(**coordinator: object) -> Mapping[str, CheckResult]:
        site.site_yaml.write_text(yaml.safe_dump({"coordinator": coordinator}))
        results = await asyncio.to_thread(lambda: tuple(network_checks(site)))
        return {result.name: result for result in results}

    return run


def health(results: Mapping[str, CheckResult]) -> dict[str, str]:
    return {name: result.health.value for name, result in results.items()}


async def test_open_way_is_told_step_by_step(look: Look, gateway: Gateway) -> None:
    results = await look()
    assert health(results) == {
        "route": "ok",
        "way: tcp": "ok",
        "way: tls": "ok",
        "way: http/2": "ok",
        "coordinator": "ok",
        "fallback": "ok",
    }
    assert results["coordinator"].message == f"{gateway.grpc_address} admits this site"


async def test_intercepted_tls_is_named_with_its_issuer_and_what_to_ask_for(
    look: Look, pki: Pki, tmp_path: Path, relays: ExitStack
) -> None:
    inspector = Pki("Example Hospital TLS Inspection")
    certificate, key = inspector.write(tmp_path / "inspector", inspector.server(GATEWAY_SERVER_NAME))
    relay = relays.enter_context(TlsInterceptor(certificate=certificate, key=key))
    results = await look(address=relay.address, fallback_address="none")
    assert results["way: tls"].health is Health.FAILED
    assert results["way: tls"].message == (
        "TLS is intercepted: the certificate presented is issued by CN=Example Hospital TLS Inspection and not by the "
        f"pinned root; ask for an exemption for {relay.address}"
    )
    assert "exemption from TLS inspection" in results["way: tls"].advice
    assert results["coordinator"].health is Health.FAILED
    # Nothing of this site's was said inside.
    assert set(relay.opened) <= {b""}


async def test_wrong_name_of_the_pinned_root_is_no_interception(look: Look, site: SiteFolder) -> None:
    results = await look(server_name="another.internal", fallback_address="none")
    assert "does not fit" in results["way: tls"].message
    assert "server_name" in results["way: tls"].advice


async def test_broken_http2_is_a_warning_where_http1_gets_through(
    look: Look, gateway: Gateway, relays: ExitStack
) -> None:
    breaker = relays.enter_context(Http2Breaker(gateway.grpc_address))
    results = await look(address=breaker.address)
    assert "when h2 is offered" in results["way: tls"].message
    assert "middlebox breaks HTTP/2" in results["way: tls"].advice
    assert (results["way: tls"].health, results["coordinator"].health) == (Health.WARNING, Health.OK)
    assert "HTTP/1.1" in results["coordinator"].message
    results = await look(address=breaker.address, fallback_address="none")
    assert (results["way: tls"].health, results["coordinator"].health) == (Health.FAILED, Health.FAILED)
    assert "coordinator.fallback_address" in results["fallback"].advice


async def test_closed_port_is_told_with_what_to_ask_the_firewall_team(look: Look) -> None:
    results = await look(address="127.0.0.1:1", fallback_address="127.0.0.1:1")
    assert "127.0.0.1:1 does not answer" in results["way: tcp"].message
    assert "firewall team" in results["way: tcp"].advice
    assert results["coordinator"].health is Health.FAILED
    assert results["fallback"].health is Health.WARNING


async def test_connection_that_is_cut_in_the_handshake_is_told(look: Look, gateway: Gateway, relays: ExitStack) -> None:
    relay = relays.enter_context(Relay(gateway.grpc_address, cut_after_bytes=100))
    results = await look(address=relay.address, fallback_address="none")
    assert "cut off" in results["way: tls"].message


@pytest.mark.parametrize(
    ("case", "message", "advice"),
    [
        ("unreachable", "does not answer", "coordinator.proxy"),
        ("no-credentials", "answers 407", "proxy_credentials_file"),
        ("wrong-credentials", "answers 407", "proxy_credentials_file"),
        ("port-forbidden", "answers 403", "permit CONNECT"),
    ],
)
async def test_proxy_that_does_not_let_through_is_told(
    look: Look, site: SiteFolder, gateway: Gateway, relays: ExitStack, case: str, message: str, advice: str
) -> None:
    port = int(gateway.grpc_address.rpartition(":")[2])
    proxy = relays.enter_context(
        ConnectProxy({1 if case == "port-forbidden" else port}, credentials="a:b" if "credentials" in case else None)
    )
    settings: dict[str, object] = {"proxy": "http://127.0.0.1:1" if case == "unreachable" else proxy.url}
    if case == "wrong-credentials":
        file = site.root / "proxy.credentials"
        file.touch(mode=0o600)
        file.write_text("a:s3cret")
        settings["proxy_credentials_file"] = "proxy.credentials"
    results = await look(**settings, fallback_address="none")
    assert message in results["way: proxy"].message
    assert advice in results["way: proxy"].advice
    assert "s3cret" not in str(results)


async def test_proxy_whose_tunnel_dies_is_told(look: Look, gateway: Gateway, relays: ExitStack) -> None:
    proxy = relays.enter_context(ConnectProxy({int(gateway.grpc_address.rpartition(":")[2])}))
    proxy.ends_tunnels = True
    results = await look(proxy=proxy.url, fallback_address="none")
    assert results["way: proxy"].health is Health.OK
    assert "cut off" in results["way: tls"].message
    assert "opens the tunnel and ends it" in results["way: tls"].advice


async def test_proxy_with_credentials_from_their_file_leads_everywhere(
    look: Look, site: SiteFolder, gateway: Gateway, relays: ExitStack
) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (gateway.grpc_address, gateway.http1_address)}
    proxy = relays.enter_context(ConnectProxy(ports, credentials="st-mary:s3:cr@t"))
    file = site.root / "proxy.credentials"
    file.touch(mode=0o600)
    file.write_text("st-mary:s3:cr@t\n")
    results = await look(proxy=proxy.url, proxy_credentials_file="proxy.credentials")
    assert set(health(results).values()) == {"ok"}
    assert "with credentials" in results["route"].message
    assert "cr@t" not in str(results)
    file.chmod(0o644)
    with pytest.raises(ProxyCredentialsError):
        await look(proxy=proxy.url, proxy_credentials_file="proxy.credentials")


async def test_environment_names_the_proxy_where_the_setting_does_not(
    look: Look, gateway: Gateway, relays: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = relays.enter_context(ConnectProxy({int(gateway.grpc_address.rpartition(":")[2])}))
    monkeypatch.setenv("https_proxy", proxy.url)
    assert proxy.address in (await look(fallback_address="none"))["route"].message
    assert len(proxy.requests) >= 2
    assert "without a proxy" in (await look(proxy="none"))["route"].message
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    assert "without a proxy" in (await look())["route"].message


async def test_refused_site_is_told_as_refused(look: Look, gateway: Gateway) -> None:
    gateway.revoked.add("st-mary")
    results = await look()
    assert results["way: http/2"].health is Health.OK
    assert results["coordinator"].health is Health.FAILED
    assert "REVOKED" in results["coordinator"].message


async def test_site_of_the_last_version_is_told_how_to_set_the_fallback(look: Look, site: SiteFolder) -> None:
    text = site.identity.read_text()
    assert '"fallback_address"' in text
    lines = [line for line in text.splitlines() if "fallback_address" not in line]
    lines[-2] = lines[-2].rstrip(",")
    site.identity.write_text("\n".join(lines))
    results = await look()
    assert results["coordinator"].health is Health.OK
    assert results["fallback"].health is Health.OK
    assert "coordinator.fallback_address" in results["fallback"].advice
