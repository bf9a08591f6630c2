"""``doctor`` finds out where the way to the coordinator ends, and names it: every line, well and broken."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from coordinator.ca.authority import GATEWAY_SERVER_NAME, ServerIdentity
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.certificates import make_enrolment_certificate, new_serial
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key, private_key_from_pem
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate
from fl_protocol.telemetry.findings import CheckResult, Health
from fl_protocol.testing.entropy import seeded_signer
from site_agent.doctor import answer_checks, network_checks
from site_agent.doctor.opening import open_scene
from site_agent.doctor.scene import Asked
from site_agent.enrolment.identity_file import SiteIdentity, load_identity, save_identity
from site_agent.errors import ProxyCredentialsError
from site_agent.folder import SiteFolder
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway, validity
from tests.support.relay import ConnectProxy, Http2Breaker, Relay, ScriptedProxy, TlsInterceptor


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


CHECKS = (*network_checks.CHECKS, *answer_checks.CHECKS)
Look = Callable[..., object]


@pytest.fixture
def look(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> Look:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def run(**coordinator: object) -> Mapping[str, CheckResult]:
        site.site_yaml.write_text(yaml.safe_dump({"coordinator": coordinator}))
        scene = open_scene(site, clock=lambda: datetime.now(UTC), environment=os.environ, asked=Asked())
        results = await asyncio.to_thread(lambda: [result for check in CHECKS for result in check.run(scene)])
        # What is told of the gateway has the check's name alone.
        return {
            result.name
            if result.facts.get("listener", "gateway") == "gateway"
            else f"{result.name} of {result.facts['listener']}": result
            for result in results
        }

    return run


def codes(results: Mapping[str, CheckResult]) -> dict[str, str]:
    return {name: result.code for name, result in results.items()}


async def test_open_way_is_told_step_by_step(look: Look, gateway: Gateway) -> None:
    results = await look()
    assert codes(results) == {
        "route": "route-direct",
        "dns": "dns-address",
        "connection": "connection-open",
        "connection of gateway over HTTP/1.1": "connection-open",
        "tls": "tls-good",
        "tls of gateway over HTTP/1.1": "tls-good",
        "http/2": "http2-good",
        "coordinator": "coordinator-admits",
        "clock": "clock-good",
    }
    assert results["coordinator"].message == f"{gateway.grpc_address} admits this site"


async def test_intercepted_tls_is_named_with_its_issuer_and_what_to_ask_for(
    look: Look, pki: Pki, tmp_path: Path, relays: ExitStack
) -> None:
    inspector = Pki("Example Hospital TLS Inspection")
    certificate, key = inspector.write(tmp_path / "inspector", inspector.server(GATEWAY_SERVER_NAME))
    relay = relays.enter_context(TlsInterceptor(certificate=certificate, key=key))
    results = await look(address=relay.address, fallback_address="none")
    assert results["tls"].health is Health.FAILED
    assert results["tls"].code == "tls-intercepted"
    assert results["tls"].message == (
        "gateway: TLS is intercepted: the certificate presented is issued by CN=Example Hospital TLS Inspection and "
        f"not by the pinned root; ask for an exemption for {relay.address}"
    )
    assert "exemption from TLS inspection" in results["tls"].advice
    assert results["coordinator"].health is Health.FAILED
    # Nothing of this site's was said inside.
    assert set(relay.opened) <= {b""}


async def test_wrong_name_of_the_pinned_root_is_no_interception(look: Look, site: SiteFolder) -> None:
    results = await look(server_name="another.internal", fallback_address="none")
    assert "does not fit" in results["tls"].message
    assert "server_name" in results["tls"].advice


async def test_broken_http2_is_a_warning_where_http1_gets_through(
    look: Look, gateway: Gateway, relays: ExitStack
) -> None:
    breaker = relays.enter_context(Http2Breaker(gateway.grpc_address))
    results = await look(address=breaker.address)
    assert "when h2 is offered" in results["tls"].message
    assert "middlebox breaks HTTP/2" in results["tls"].advice
    assert (results["tls"].health, results["coordinator"].health) == (Health.WARNING, Health.OK)
    assert "HTTP/1.1" in results["coordinator"].message
    results = await look(address=breaker.address, fallback_address="none")
    assert (results["tls"].health, results["coordinator"].health) == (Health.FAILED, Health.FAILED)
    assert "coordinator.fallback_address" in results["tls"].advice


async def test_closed_port_is_told_with_what_to_ask_the_firewall_team(look: Look) -> None:
    results = await look(address="127.0.0.1:1", fallback_address="127.0.0.1:1")
    assert "127.0.0.1:1 does not answer" in results["connection"].message
    assert results["connection"].code == "refused"
    assert "firewall team" in results["connection"].advice
    assert results["coordinator"].code == "coordinator-unreached"
    assert results["connection of gateway over HTTP/1.1"].health is Health.WARNING


async def test_connection_that_is_cut_in_the_handshake_is_told(look: Look, gateway: Gateway, relays: ExitStack) -> None:
    relay = relays.enter_context(Relay(gateway.grpc_address, cut_after_bytes=100))
    results = await look(address=relay.address, fallback_address="none")
    assert "cut off" in results["tls"].message


@pytest.mark.parametrize(
    ("case", "code", "message", "advice"),
    [
        ("unreachable", "proxy-unreachable", "does not answer", "coordinator.proxy"),
        ("no-credentials", "proxy-credentials", "answers 407", "proxy_credentials_file"),
        ("wrong-credentials", "proxy-credentials-refused", "answers 407", "proxy_credentials_file"),
        ("port-forbidden", "proxy-forbids", "answers 403", "permit CONNECT"),
    ],
)
async def test_proxy_that_does_not_let_through_is_told(
    look: Look, site: SiteFolder, gateway: Gateway, relays: ExitStack, case: str, code: str, message: str, advice: str
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
    assert results["connection"].code == code
    assert message in results["connection"].message
    assert advice in results["connection"].advice
    assert "s3cret" not in str(results)


async def test_proxy_whose_tunnel_dies_is_told(look: Look, gateway: Gateway, relays: ExitStack) -> None:
    proxy = relays.enter_context(ConnectProxy({int(gateway.grpc_address.rpartition(":")[2])}))
    proxy.ends_tunnels = True
    results = await look(proxy=proxy.url, fallback_address="none")
    assert results["connection"].health is Health.OK
    assert "cut off" in results["tls"].message
    assert "opens the tunnel and ends it" in results["tls"].advice


async def test_proxy_with_credentials_from_their_file_leads_everywhere(
    look: Look, site: SiteFolder, gateway: Gateway, relays: ExitStack
) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (gateway.grpc_address, gateway.http1_address)}
    proxy = relays.enter_context(ConnectProxy(ports, credentials="st-mary:s3:cr@t"))
    file = site.root / "proxy.credentials"
    file.touch(mode=0o600)
    file.write_text("st-mary:s3:cr@t\n")
    results = await look(proxy=proxy.url, proxy_credentials_file="proxy.credentials")
    assert {result.health for result in results.values()} <= {Health.OK, Health.NOTE}
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
    assert results["http/2"].health is Health.OK
    assert results["coordinator"].health is Health.FAILED
    assert "REVOKED" in results["coordinator"].message


async def test_site_of_an_earlier_version_is_told_how_to_set_the_fallback(
    look: Look, site: SiteFolder, gateway: Gateway, relays: ExitStack
) -> None:
    text = site.identity.read_text()
    assert '"fallback_address"' in text
    lines = [line for line in text.splitlines() if "fallback_address" not in line]
    lines[-2] = lines[-2].rstrip(",")
    site.identity.write_text("\n".join(lines))
    assert (await look())["coordinator"].code == "coordinator-admits"
    breaker = relays.enter_context(Http2Breaker(gateway.grpc_address))
    told = (await look(address=breaker.address))["coordinator"]
    assert told.code == "fallback-unknown"
    assert "coordinator.fallback_address" in told.advice


@pytest.mark.parametrize(
    ("ahead_by_s", "code", "said"),
    [(0, "clock-good", ""), (-90, "clock-off", "behind"), (900, "clock-wrong", "ahead of")],
)
async def test_clock_is_compared_with_the_coordinators(
    site: SiteFolder, gateway: Gateway, ahead_by_s: float, code: str, said: str
) -> None:
    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=ahead_by_s)

    site.site_yaml.write_text("")
    scene = open_scene(site, clock=clock, environment={}, asked=Asked())
    (result,) = await asyncio.to_thread(lambda: [r for c in CHECKS if c.name == "clock" for r in c.run(scene)])
    assert result.code == code
    assert said in result.message
    # The header has whole seconds; a busy machine adds its own.
    assert abs(float(str(result.facts["ahead_by_s"])) - ahead_by_s) <= 3


async def test_proxy_that_asks_for_another_kind_of_credentials_is_told(look: Look, relays: ExitStack) -> None:
    proxy = relays.enter_context(ScriptedProxy(b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n"))
    told = (await look(proxy=proxy.url, fallback_address="none"))["connection"]
    assert (told.code, "Basic" in told.advice) == ("proxy-scheme", True)


async def test_what_squid_says_of_its_failure_is_repeated(look: Look, relays: ExitStack) -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n"
    proxy = relays.enter_context(ScriptedProxy(answer))
    told = (await look(proxy=proxy.url, fallback_address="none"))["connection"]
    assert (told.code, "ERR_DNS_FAIL" in told.message) == ("proxy-failed", True)


async def test_proxy_that_is_not_needed_is_a_note_and_one_that_is_missed_a_warning(
    look: Look, gateway: Gateway, relays: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (gateway.grpc_address, gateway.http1_address)}
    proxy = relays.enter_context(ConnectProxy(ports))
    assert (await look(proxy=proxy.url))["route"].code == "route-proxy-needless"
    monkeypatch.setenv("http_proxy", "http://user:s3cret@proxy.example:3128")
    told = (await look(address="127.0.0.1:1", fallback_address="none"))["route"]
    assert (told.code, "http_proxy" in told.message) == ("route-proxy-missed", True)
    assert "s3cret" not in told.message


async def test_port_of_enrolment_is_not_taken_for_interception(
    look: Look, pki: Pki, tmp_path: Path, relays: ExitStack
) -> None:
    key = generate_private_key()
    own = make_enrolment_certificate(key, validity=validity(), serial=new_serial())
    shown = ServerIdentity(certificate_pem=pem_from_certificate(own), key_pem=pem_from_private_key(key))
    certificate, key_file = pki.write(tmp_path / "enrolment", shown)
    relay = relays.enter_context(TlsInterceptor(certificate=certificate, key=key_file))
    told = (await look(address=relay.address, fallback_address="none"))["tls"]
    assert (told.code, "where sites enrol" in told.message) == ("answer-foreign", True)
