# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""A site enrols where a middlebox breaks HTTP/2: by itself, over the sister listener, and no less safely."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from fl_protocol.pki.certificates import Validity, make_enrolment_certificate, new_serial
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate
from site_agent.cli.app import run_program
from site_agent.enrolment.enrol import fingerprint_from_text
from site_agent.enrolment.http1_call import CallEndedError, call_over_http1
from site_agent.enrolment.identity_file import load_identity
from site_agent.enrolment.listener import SERVER_NAME
from site_agent.folder import SiteFolder
from tests.support.relay import Http2Breaker, TlsInterceptor

ENROL = "/fl_protocol.wire.v1.EnrolmentService/Enrol"

Run = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def relays() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def enrol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``wardround-site enrol`` as it is typed; its exit code and its JSON document."""

    def run(address: str, invitation: dict[str, str], *, name: str) -> tuple[int, dict[str, object]]:
        told = ["--coordinator", address, "--code", invitation["code"]]
        told += ["--root-fingerprint", invitation["root_fingerprint"], "--state-dir", str(tmp_path / name)]
        code = run_program(["enrol", *told, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out or said.err)

    return run


def test_site_behind_a_middlebox_that_breaks_http2_enrols_over_http1(
    invite, coordinator, relays, enrol, tmp_path
) -> None:
    breaker = relays.enter_context(Http2Breaker(coordinator.addresses()["enrolment_http1"]))
    invitation = invite("behind-a-middlebox")
    code, said = enrol(breaker.address, invitation, name="site")
    assert (code, said["site_id"], said["transport"]) == (0, "behind-a-middlebox", "http/1.1")
    assert any("h2" in offer for offer in breaker.offers), "HTTP/2 was tried first"
    identity = load_identity(SiteFolder(root=tmp_path / "site"))
    assert identity.root_sha256 == fingerprint_from_text(invitation["root_fingerprint"])
    assert identity.fallback_address == coordinator.addresses()["gateway_http1"]


def test_site_with_a_good_network_enrols_over_grpc_as_before(invite, coordinator, enrol) -> None:
    code, said = enrol(coordinator.addresses()["enrolment"], invite("good-network"), name="site")
    assert (code, said["transport"]) == (0, "grpc")


def test_code_that_other_keys_used_is_refused_over_http1_by_its_own_reason(invite, coordinator, relays, enrol) -> None:
    breaker = relays.enter_context(Http2Breaker(coordinator.addresses()["enrolment_http1"]))
    invitation = invite("spent-over-http1")
    assert enrol(breaker.address, invitation, name="first")[0] == 0
    code, said = enrol(breaker.address, invitation, name="thief")
    assert code != 0
    error = said["error"]
    assert isinstance(error, dict)
    assert error["code"] == "enrolment-code-spent"


def test_listener_for_enrolment_serves_no_other_call(coordinator) -> None:
    host, port = coordinator.addresses()["enrolment_http1"].rsplit(":", 1)
    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))
    with pytest.raises(CallEndedError) as ended:
        call_over_http1(
            (host, int(port)),
            "/fl_protocol.wire.v1.RunService/ListPending",
            b"",
            certificate_der=der,
            server_name=SERVER_NAME,
            proxy=None,
            timeout_s=10,
            max_bytes=1000,
        )
    assert ended.value.status is grpc.StatusCode.INVALID_ARGUMENT


def test_listener_that_changes_its_certificate_before_the_call_is_sent_nothing(coordinator, relays, tmp_path) -> None:
    """The secret goes to the certificate that was judged. Another one of the same name ends the handshake."""
    host, port = coordinator.addresses()["enrolment_http1"].rsplit(":", 1)
    judged = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))
    key, now = generate_private_key(), datetime.now(UTC).replace(microsecond=0)
    certificate = make_enrolment_certificate(
        key,
        validity=Validity(not_before=now - timedelta(hours=1), not_after=now + timedelta(days=1)),
        serial=new_serial(),
    )
    (tmp_path / "other.pem").write_bytes(pem_from_certificate(certificate))
    (tmp_path / "other.key").write_bytes(pem_from_private_key(key))
    other = relays.enter_context(TlsInterceptor(certificate=tmp_path / "other.pem", key=tmp_path / "other.key"))
    there, at = other.address.rsplit(":", 1)
    with pytest.raises(CallEndedError):
        call_over_http1(
            (there, int(at)),
            ENROL,
            b"the secret",
            certificate_der=judged,
            server_name=SERVER_NAME,
            proxy=None,
            timeout_s=10,
            max_bytes=1000,
        )
    assert b"the secret" not in b"".join(other.opened)
