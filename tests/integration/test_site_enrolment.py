"""A site enrols over a real TLS listener on loopback, and its commands work on what that leaves behind."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from fl_protocol.ids import SiteId
from fl_protocol.pki.certificates import (
    LeafNames,
    Validity,
    issue_leaf,
    make_ca_certificate,
    make_enrolment_certificate,
    new_serial,
)
from fl_protocol.pki.csr import read_csr
from fl_protocol.pki.identity import site_uri
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key, spki_from_private_key
from fl_protocol.pki.tls import pem_from_certificate
from fl_protocol.wire.v1 import enrolment_pb2, enrolment_pb2_grpc, errors_pb2
from site_agent.cli.app import run_program
from tests.support.relay import ConnectProxy

SECRET = bytes(range(20))


@dataclass
class Coordinator(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """The least of a coordinator: one code, spent by the first signing key that brings it."""

    gateway_address: str = "127.0.0.1:1"
    refusal: tuple[grpc.StatusCode, str] | None = None
    used_by: bytes | None = None
    validity: Validity = field(
        default_factory=lambda: Validity(
            not_before=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1),
            not_after=datetime.now(UTC).replace(microsecond=0) + timedelta(days=90),
        )
    )

    def __post_init__(self) -> None:
        self.ca_key, self.listener_key = generate_private_key(), generate_private_key()
        self.signing_spki = spki_from_private_key(generate_private_key())
        self.root = make_ca_certificate(
            self.ca_key, common_name="Wardround test", validity=self.validity, serial=new_serial()
        )
        self.certificate = make_enrolment_certificate(self.listener_key, validity=self.validity, serial=new_serial())

    def Enrol(  # noqa: N802 - the name of the call
        self, request: enrolment_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        if request.code_secret != SECRET:
            self.refuse(context, grpc.StatusCode.UNAUTHENTICATED, "enrolment-code-unknown")
        if self.used_by not in {None, request.signing_spki_der}:
            self.refuse(context, grpc.StatusCode.UNAUTHENTICATED, "enrolment-code-spent")
        self.used_by = request.signing_spki_der
        if self.refusal is not None:
            self.refuse(context, *self.refusal)
        certificate = issue_leaf(
            self.ca_key,
            self.root,
            public_key=read_csr(request.tls_csr_der),
            common_name="st-mary",
            names=LeafNames(uris=(site_uri(SiteId("st-mary")),)),
            validity=self.validity,
            serial=new_serial(),
        )
        return enrolment_pb2.EnrolResponse(
            site_id="st-mary",
            certificate_pem=pem_from_certificate(certificate),
            root_pem=pem_from_certificate(self.root),
            gateway_address=self.gateway_address,
            gateway_server_name="gateway.wardround.internal",
            coordinator_signing_spki_der=self.signing_spki,
        )

    def refuse(self, context: grpc.ServicerContext, status: grpc.StatusCode, code: str) -> None:
        refusal = errors_pb2.Refusal(code=code, message="no")
        context.set_trailing_metadata((("wardround-refusal-bin", refusal.SerializeToString()),))
        context.abort(status, "refused")

    def code(self, secret: bytes = SECRET) -> str:
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        return f"WR1-{base64.b32encode(secret).decode()}-{hashlib.sha256(der).hexdigest()[:32]}"

    @property
    def root_fingerprint(self) -> str:
        return hashlib.sha256(self.root.public_bytes(serialization.Encoding.DER)).hexdigest()


@dataclass
class Answer:
    exit_code: int
    document: dict[str, object]


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def address(coordinator: Coordinator) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(coordinator, server)
    credentials = grpc.ssl_server_credentials(
        [(pem_from_private_key(coordinator.listener_key), pem_from_certificate(coordinator.certificate))]
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


class Program:
    def __init__(self, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state_dir, self.capsys = state_dir, capsys

    def __call__(self, *arguments: str) -> Answer:
        exit_code = run_program([*arguments, "--json", "--state-dir", str(self.state_dir)])
        return Answer(exit_code=exit_code, document=json.loads(self.capsys.readouterr().out))


@pytest.fixture
def program(site: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(site, capsys)


def enrol(program: Program, coordinator: Coordinator, address: str, *more: str) -> Answer:
    return program("enrol", "--coordinator", address, "--code", coordinator.code(), *more)


def error_code(answer: Answer) -> object:
    error = answer.document["error"]
    assert isinstance(error, dict)
    return error["code"]


def test_enrol_over_a_real_listener_makes_a_site_that_verifies(
    program: Program, coordinator: Coordinator, address: str
) -> None:
    answer = enrol(program, coordinator, address, "--root-fingerprint", coordinator.root_fingerprint)
    assert (answer.exit_code, answer.document["site_id"]) == (0, "st-mary")
    shown = program("identity", "show").document
    assert shown["signing_key_sha256"] == hashlib.sha256(coordinator.used_by or b"").hexdigest()
    # The key that `wardround audit verify` asks an auditor to compare.
    assert shown["coordinator_signing_key_sha256"] == hashlib.sha256(coordinator.signing_spki).hexdigest()
    verified = program("audit", "verify")
    assert (verified.exit_code, verified.document["size"]) == (0, 1)
    assert program("policy", "check", str(program.state_dir / "policy.yaml")).exit_code == 0
    status = program("status").document
    assert (status["agent"], status["n_pending"]) == ({"is_running": False}, 0)


def test_enrol_with_the_code_in_a_file_makes_the_site(
    program: Program, coordinator: Coordinator, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "enrolment.code"
    file.write_text(f"{coordinator.code()}\n")
    answer = program("enrol", "--coordinator", address, "--code-file", str(file))
    assert (answer.exit_code, answer.document["site_id"]) == (0, "st-mary")


def test_enrol_without_one_code_is_wrong_usage(program: Program, coordinator: Coordinator, tmp_path: Path) -> None:
    empty = tmp_path / "empty.code"
    empty.touch()
    words = ("enrol", "--coordinator", "127.0.0.1:1")
    for code in (
        (),
        ("--code", coordinator.code(), "--code-file", str(empty)),
        ("--code-file", str(empty)),
        ("--code-file", str(tmp_path / "absent")),
    ):
        answer = program(*words, *code)
        assert (answer.exit_code, error_code(answer)) == (2, "wrong-usage"), code


def test_enrol_again_after_a_lost_answer_succeeds_with_the_same_keys(
    program: Program, coordinator: Coordinator, address: str
) -> None:
    coordinator.refusal = (grpc.StatusCode.UNAVAILABLE, "gone")
    lost = enrol(program, coordinator, address)
    assert (lost.exit_code, error_code(lost)) == (5, "enrolment-unreachable")
    coordinator.refusal = None
    assert enrol(program, coordinator, address).exit_code == 0


def test_enrol_with_a_spent_code_from_another_folder_is_refused(
    program: Program, coordinator: Coordinator, address: str, site: Path
) -> None:
    assert enrol(program, coordinator, address).exit_code == 0
    shutil.rmtree(site)
    again = enrol(program, coordinator, address)
    assert (again.exit_code, error_code(again)) == (3, "enrolment-code-spent")


def test_enrol_with_a_wrong_secret_is_refused(program: Program, coordinator: Coordinator, address: str) -> None:
    answer = program("enrol", "--coordinator", address, "--code", coordinator.code(bytes(20)))
    assert (answer.exit_code, error_code(answer)) == (3, "enrolment-code-unknown")


def test_enrol_at_another_listener_sends_no_secret(program: Program, coordinator: Coordinator, address: str) -> None:
    answer = program("enrol", "--coordinator", address, "--code", Coordinator().code())
    assert (answer.exit_code, error_code(answer)) == (1, "enrolment-certificate-mismatch")
    assert coordinator.used_by is None


def test_enrol_where_nobody_listens_may_be_tried_again(program: Program, coordinator: Coordinator) -> None:
    answer = enrol(program, coordinator, "127.0.0.1:1")
    assert (answer.exit_code, error_code(answer)) == (5, "enrolment-unreachable")


def test_audit_verify_of_an_altered_row_names_it(
    program: Program, coordinator: Coordinator, address: str, site: Path
) -> None:
    enrol(program, coordinator, address)
    assert program("peers", "add", "charite", "ab" * 32).exit_code == 0
    assert program("runs", "pause").exit_code == 0
    with sqlite3.connect(site / "site.db") as connection:
        connection.execute("UPDATE audit_events SET body = replace(body, 'charite', 'mallory') WHERE seq = 1")
    connection.close()
    answer = program("audit", "verify")
    assert (answer.exit_code, answer.document["row"], answer.document["reason"]) == (1, 1, "altered")
    assert program("audit", "export", str(site / "audit.jsonl")).exit_code == 1
    assert not (site / "audit.jsonl").exists()


def test_older_audit_export_is_overwritten_only_where_that_is_said(
    program: Program, coordinator: Coordinator, address: str, site: Path
) -> None:
    enrol(program, coordinator, address)
    file = site / "audit.jsonl"
    assert program("audit", "export", str(file)).exit_code == 0
    older = file.read_bytes()
    assert program("runs", "pause").exit_code == 0
    assert program("audit", "export", str(file)).exit_code == 2
    assert file.read_bytes() == older
    assert program("audit", "export", str(file), "--replace").exit_code == 0
    assert file.read_bytes().startswith(older[:100])
    assert len(file.read_bytes()) > len(older)


def test_doctor_without_a_gateway_says_what_is_missing(
    program: Program, coordinator: Coordinator, address: str
) -> None:
    enrol(program, coordinator, address)
    answer = program("doctor")
    checks = answer.document["checks"]
    assert isinstance(checks, list)
    health = {check["name"]: check["health"] for check in checks}
    assert answer.exit_code == 1
    assert health["coordinator"] == "failed"
    assert {health[name] for name in ("settings", "identity", "keys", "certificate", "database")} == {"ok"}


def test_enrol_goes_through_the_proxy_that_is_named_and_keeps_it(
    program: Program,
    coordinator: Coordinator,
    address: str,
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    secret = tmp_path / "proxy.credentials"
    secret.touch(mode=0o600)
    secret.write_text("hospital:s3:cr@t\n")
    with ConnectProxy({int(address.rpartition(":")[2])}, credentials="hospital:s3:cr@t") as proxy:
        refused = enrol(program, coordinator, address, "--proxy", proxy.url)
        assert (refused.exit_code, error_code(refused)) == (5, "enrolment-unreachable")
        assert "proxy_credentials_file" in json.dumps(refused.document)
        options = ("--proxy", proxy.url, "--proxy-credentials-file", str(secret))
        answer = enrol(program, coordinator, address, *options)
        assert answer.exit_code == 0, answer.document
        # Once to see the certificate and once to call; nothing went straight.
        assert proxy.requests == [f"CONNECT {address} HTTP/1.1"] * 3
        kept = yaml.safe_load((site / "site.yaml").read_text())["coordinator"]
        assert (kept["proxy"], kept["proxy_credentials_file"]) == (proxy.url, str(secret))
    assert "cr@t" not in (site / "site.yaml").read_text()


def test_enrol_with_a_proxy_that_forbids_the_port_says_so(
    program: Program, coordinator: Coordinator, address: str
) -> None:
    with ConnectProxy({1}) as proxy:
        answer = enrol(program, coordinator, address, "--proxy", proxy.url)
    assert (answer.exit_code, error_code(answer)) == (5, "enrolment-unreachable")
    assert "permit CONNECT" in json.dumps(answer.document)


def test_enrol_with_a_proxy_that_is_none_is_wrong_usage(
    program: Program, coordinator: Coordinator, address: str
) -> None:
    answer = enrol(program, coordinator, address, "--proxy", "http://hospital:s3cret@proxy:3128")
    assert (answer.exit_code, error_code(answer)) == (2, "proxy-invalid")
    assert "s3cret" not in json.dumps(answer.document)
    assert coordinator.used_by is None
