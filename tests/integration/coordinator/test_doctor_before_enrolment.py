# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""``wardround-site doctor`` by a hospital that holds an invitation and nothing else, against a real coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from fl_protocol.telemetry.findings import CheckResult
from site_agent.cli.app import app, first_options_first
from site_agent.doctor import answer_checks, endpoints, network_checks
from site_agent.doctor.opening import open_scene
from site_agent.doctor.scene import Asked
from site_agent.enrolment.code import code_from_text
from site_agent.folder import SiteFolder
from tests.support.gateway import Pki
from tests.support.inspecting_proxy import InspectingProxy
from tests.support.relay import Http2Breaker

SCHEMA = Path(__file__).parents[3] / "docs/reference/doctor-report.schema.json"
Results = Mapping[str, CheckResult]


@dataclass(frozen=True)
class Invited:
    """What the invitation says, and where the coordinator's listeners are."""

    code: str
    gateway: str
    enrolment: str


@pytest.fixture
def invited(coordinator, invite, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Invited:
    addresses = coordinator.addresses()
    # The coordinator of the tests has chosen its ports; for the doctor they are the usual ones.
    for name, listener in (
        ("GATEWAY_PORT", "gateway"),
        ("GATEWAY_HTTP1_PORT", "gateway_http1"),
        ("DEFAULT_PORT", "enrolment"),
        ("DEFAULT_HTTP1_PORT", "enrolment_http1"),
    ):
        monkeypatch.setattr(endpoints, name, int(addresses[listener].rpartition(":")[2]))
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    return Invited(
        code=invite(f"doctor-{abs(hash(name)) % 10**9}")["code"],
        gateway=addresses["gateway"],
        enrolment=addresses["enrolment"],
    )


@pytest.fixture
def relays() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


CHECKS = (*network_checks.CHECKS, *answer_checks.CHECKS)
Look = Callable[..., Results]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    def run(*, ahead_by: timedelta = timedelta(0), code: str | None = None, **asked: str) -> Results:
        folder = SiteFolder(root=tmp_path / "site")
        scene = open_scene(
            folder,
            clock=lambda: datetime.now(UTC) + ahead_by,
            environment={},
            asked=Asked(code=None if code is None else code_from_text(code), **asked),  # type: ignore[arg-type]
        )
        results = [result for check in CHECKS for result in check.run(scene)]
        assert not folder.root.exists(), "it changes nothing"
        return {
            f"{result.name} of {result.facts['listener']}" if "listener" in result.facts else result.name: result
            for result in results
        }

    return run


def test_open_way_is_told_and_the_code_is_not_spent(look: Look, invited: Invited, tmp_path: Path) -> None:
    results = look(enrolment=invited.enrolment, code=invited.code)
    assert {name: result.code for name, result in results.items()} == {
        "route": "route-direct",
        "dns": "dns-address",
        "connection of gateway": "connection-open",
        "connection of enrolment": "connection-open",
        "connection of gateway over HTTP/1.1": "connection-open",
        "connection of enrolment over HTTP/1.1": "connection-open",
        "tls of gateway": "tls-before-root",
        "tls of enrolment": "tls-good",
        "tls of gateway over HTTP/1.1": "tls-before-root",
        "tls of enrolment over HTTP/1.1": "tls-good",
        "http/2 of enrolment": "http2-good",
        "coordinator": "coordinator-not-asked",
        "clock": "clock-good",
    }
    line = ["--state-dir", str(tmp_path / "site"), "enrol", "--coordinator", invited.enrolment, "--code", invited.code]
    assert CliRunner().invoke(app, first_options_first(line)).exit_code == 0


def test_without_the_code_the_digits_are_shown_to_be_compared(look: Look, invited: Invited) -> None:
    told = look(enrolment=invited.enrolment)["tls of enrolment"]
    assert told.code == "tls-unpinned"
    assert invited.code.rpartition("-")[2] in told.message


def test_code_of_another_coordinator_does_not_fit(look: Look, invited: Invited) -> None:
    other = f"{invited.code.rpartition('-')[0]}-{'0' * 32}"
    told = look(enrolment=invited.enrolment, code=other)["tls of enrolment"]
    assert (told.code, "another coordinator's" in told.message) == ("certificate-wrong", True)


@pytest.mark.parametrize("has_code", [True, False])
def test_inspecting_proxy_is_named_by_its_authority_with_and_without_the_code(
    look: Look, invited: Invited, relays: ExitStack, tmp_path: Path, has_code: bool
) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (invited.gateway, invited.enrolment)}
    authority = Pki("Example Hospital TLS Inspection")
    proxy = relays.enter_context(InspectingProxy(ports, authority=authority, folder=tmp_path))
    results = look(
        enrolment=invited.enrolment,
        coordinator=invited.gateway,
        proxy=proxy.url,
        code=invited.code if has_code else None,
    )
    told = results["tls of enrolment"]
    assert told.code == "tls-intercepted"
    assert "issued by CN=Example Hospital TLS Inspection" in told.message
    assert f"exemption for {invited.enrolment}" in told.message
    # The gateway ends what an inspecting box opens without a certificate; either way it is not well.
    assert results["tls of gateway"].code in {"tls-intercepted", "tunnel-ends"}
    assert results["coordinator"].code == "coordinator-unreached"
    assert proxy.heard == [], "nothing was said inside"


def test_broken_http2_is_a_warning_where_enrolment_works_over_http1(
    look: Look, invited: Invited, relays: ExitStack
) -> None:
    breaker = relays.enter_context(Http2Breaker(invited.enrolment))
    told = look(enrolment=breaker.address, coordinator=invited.gateway, code=invited.code)
    assert told["tls of enrolment"].code == "http2-broken"
    # Nobody named another port than the broken one's, and the usual one is told by the gateway's.
    assert told["coordinator"].code == "coordinator-not-asked"
    assert told["tls of enrolment"].health.value == "warning"


@pytest.mark.parametrize(("ahead_by_s", "code"), [(400, "clock-wrong"), (-400, "clock-wrong"), (-60, "clock-off")])
def test_clock_is_compared_before_enrolment(look: Look, invited: Invited, ahead_by_s: float, code: str) -> None:
    told = look(enrolment=invited.enrolment, ahead_by=timedelta(seconds=ahead_by_s))["clock"]
    assert told.code == code
    assert abs(float(str(told.facts["ahead_by_s"])) - ahead_by_s) <= 3


def test_name_that_does_not_exist_is_told_with_what_to_ask_for(look: Look) -> None:
    results = look(enrolment="coordinator.invalid:8445")
    assert (results["dns"].code, results["dns"].health.value) == ("host-unknown", "failed")
    assert "DNS" in results["dns"].advice


def test_command_says_what_is_wrong_and_ends_with_one(tmp_path: Path) -> None:
    line = ["--json", "--state-dir", str(tmp_path / "site"), "doctor", "--enrolment", "127.0.0.1:1"]
    done = CliRunner().invoke(app, line)
    document = json.loads(done.stdout)
    assert (done.exit_code, document["ok"]) == (1, False)
    jsonschema_rs.validate(json.loads(SCHEMA.read_text()), document)
    told = {check["name"]: check for check in document["checks"]}
    assert (told["settings"]["code"], told["connection"]["code"]) == ("settings-none", "refused")
    assert "--firewall" in told["connection"]["advice"]


def test_firewall_request_holds_addresses_ports_and_no_code(invited: Invited, tmp_path: Path) -> None:
    port = invited.enrolment.rpartition(":")[2]
    common = ["--state-dir", str(tmp_path / "site"), "doctor", "--firewall", "--enrolment", f"localhost:{port}"]
    document = json.loads(CliRunner().invoke(app, ["--json", *common, "--code", invited.code]).stdout)
    assert [opening["port"] for opening in document["openings"]] == [
        endpoints.GATEWAY_PORT,
        endpoints.DEFAULT_PORT,
        endpoints.GATEWAY_HTTP1_PORT,
        endpoints.DEFAULT_HTTP1_PORT,
    ]
    assert {address for opening in document["openings"] for address in opening["addresses"]} <= {"127.0.0.1", "::1"}
    text = CliRunner().invoke(app, [*common, "--code", invited.code]).stdout
    assert f"TCP to localhost port {port}, outbound" in text
    assert invited.code.split("-")[1] not in text + json.dumps(document)
    proxied = CliRunner().invoke(app, ["--json", *common, "--proxy", "http://127.0.0.1:3128"])
    openings = json.loads(proxied.stdout)["openings"]
    assert (openings[0]["to"], openings[0]["port"]) == ("127.0.0.1", 3128)
    assert "the proxy 127.0.0.1:3128" in openings[1]["from"]
