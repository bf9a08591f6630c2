from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.packing import pack
from fl_protocol.pki.csr import read_csr
from fl_protocol.pki.keys import generate_private_key, spki_from_private_key
from fl_protocol.signing.keys import verify_signature
from site_agent.enrolment.code import EnrolmentCode, code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, enrol_site, fingerprint_from_text
from site_agent.enrolment.errors import (
    AlreadyEnrolledError,
    EnrolmentAnswerError,
    EnrolmentCodeExpiredError,
    EnrolmentCodeSpentError,
    EnrolmentCodeUnknownError,
    EnrolmentInputError,
    EnrolmentRefusedError,
    EnrolmentUnreachableError,
    ListenerCertificateError,
    NotEnrolledError,
    RootFingerprintError,
)
from site_agent.enrolment.identity_file import SiteIdentity, is_enrolled, load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import (
    EnrolmentAnswer,
    EnrolmentRequest,
    error_from_refusal,
    split_address,
)
from site_agent.folder import SiteFolder
from site_agent.policy.rules import SitePolicy
from site_agent.policy_file import load_policy
from site_agent.settings import load_settings

NOW = datetime.fromisoformat("2026-01-31T12:00:00Z")
SECRET = bytes(range(20))


@dataclass
class FakeListener:
    """A coordinator that answers by its authority, and notes what it was sent."""

    authority: Any
    lost_answers: int = 0
    changes: dict[str, object] = field(default_factory=dict)
    requests: list[EnrolmentRequest] = field(default_factory=list)
    coordinator_key: Any = field(default_factory=generate_private_key)

    def fetch_certificate(self, address: str) -> bytes:
        return self.authority.listener_der

    def enrol(self, address: str, certificate_der: bytes, request: EnrolmentRequest) -> EnrolmentAnswer:
        self.requests.append(request)
        if self.lost_answers:
            self.lost_answers -= 1
            raise EnrolmentUnreachableError("no answer", advice="")
        answer = EnrolmentAnswer(
            site_id="st-mary",
            certificate_pem=self.authority.issue(read_csr(request.tls_csr_der)),
            root_pem=self.authority.certificate_pem,
            gateway_address="fl.example.org:8444",
            gateway_server_name="gateway.wardround.internal",
            coordinator_signing_spki_der=spki_from_private_key(self.coordinator_key),
        )
        return replace(answer, **self.changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    (tmp_path / "site").mkdir()
    return SiteFolder(root=tmp_path / "site")


@pytest.fixture
def listener(authority: Any) -> FakeListener:
    return FakeListener(authority)


@pytest.fixture
def code(authority: Any) -> EnrolmentCode:
    prefix = hashlib.sha256(authority.listener_der).hexdigest()[:32]
    return code_from_text(f"WR1-{base64.b32encode(SECRET).decode()}-{prefix}")


def run(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode, root_fingerprint: str | None = None
) -> tuple[SiteIdentity, list[SiteIdentity]]:
    recorded: list[SiteIdentity] = []
    order = EnrolmentOrder(
        coordinator_address="fl.example.org:8445",
        code=code,
        root_fingerprint=None if root_fingerprint is None else fingerprint_from_text(root_fingerprint),
        agent_version="0.1.0",
    )
    identity = enrol_site(
        folder, order, listener=listener, now=NOW, record=lambda identity, _signer: recorded.append(identity)
    )
    return identity, recorded


def root_fingerprint(authority: Any) -> str:
    certificate = x509.load_pem_x509_certificate(authority.certificate_pem)
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def test_enrol_site_empty_folder_becomes_a_site(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    identity, recorded = run(folder, listener, code)
    assert load_identity(folder) == identity
    assert recorded == [identity]
    assert identity.site_id == "st-mary"
    assert identity.signing_key_sha256 == KeyStore(folder).signing_key_sha256()
    assert identity.root_sha256 == root_fingerprint(listener.authority)


def test_enrol_site_leaves_settings_and_a_policy_that_permits_nothing(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    run(folder, listener, code)
    settings = load_settings(folder.root)
    assert settings.coordinator.address == "fl.example.org:8444"
    nothing = replace(SitePolicy(), algorithms=frozenset({"fedavg-lora"}), local_rules=frozenset({"plain"}))
    assert load_policy(settings.policy_path) == nothing
    assert folder.policy_yaml.read_text().count("#") > 5


def test_enrol_site_keeps_files_that_are_there(folder: SiteFolder, listener: FakeListener, code: EnrolmentCode) -> None:
    folder.site_yaml.write_text("runner: {threads: 2}\n")
    folder.policy_yaml.write_text("tasks: [instruction-tuning]\n")
    run(folder, listener, code)
    assert load_settings(folder.root).runner.threads == 2
    assert load_policy(folder.policy_yaml).tasks == frozenset({"instruction-tuning"})


def test_enrol_site_sends_public_halves_and_a_proof_of_both(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    run(folder, listener, code)
    (request,) = listener.requests
    assert request.code_secret == SECRET
    body = pack(hashlib.sha256(SECRET).digest(), request.tls_csr_der)
    verify_signature(request.signing_spki_der, pack(b"WR/sig/enrolment", body), request.possession_signature)
    assert read_csr(request.tls_csr_der) == KeyStore(folder).load_tls_key().public_key()
    sent = b"".join([request.tls_csr_der, request.signing_spki_der, request.possession_signature])
    for path in (folder.signing_key, folder.tls_key):
        assert path.read_bytes() not in sent


def test_enrol_site_listener_with_another_certificate_is_sent_nothing(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    listener.authority = replace(listener.authority, listener_der=b"another certificate")
    with pytest.raises(ListenerCertificateError) as caught:
        run(folder, listener, code)
    assert listener.requests == []
    assert not is_enrolled(folder)
    assert "proxy" in caught.value.advice


def test_enrol_site_after_a_lost_answer_sends_the_same_keys_again(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    listener.lost_answers = 1
    with pytest.raises(EnrolmentUnreachableError):
        run(folder, listener, code)
    assert not is_enrolled(folder)
    run(folder, listener, code)
    first, second = listener.requests
    assert first.signing_spki_der == second.signing_spki_der
    assert read_csr(first.tls_csr_der) == read_csr(second.tls_csr_der)


def test_enrol_site_twice_is_refused_before_anything_is_sent(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    run(folder, listener, code)
    with pytest.raises(AlreadyEnrolledError):
        run(folder, listener, code)
    assert len(listener.requests) == 1


def test_enrol_site_root_as_told_is_kept_however_it_is_written(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    told = root_fingerprint(listener.authority).upper()
    colons = ":".join(told[i : i + 2] for i in range(0, 64, 2))
    assert run(folder, listener, code, root_fingerprint=colons)[0].site_id == "st-mary"


def test_enrol_site_another_root_than_told_keeps_nothing(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    with pytest.raises(RootFingerprintError):
        run(folder, listener, code, root_fingerprint="00" * 32)
    assert not is_enrolled(folder)
    assert not folder.root_certificate.exists()


def test_enrol_site_certificate_of_another_authority_keeps_nothing(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    listener.changes = {"root_pem": listener.authority.renewed().certificate_pem}
    with pytest.raises(EnrolmentAnswerError):
        run(folder, listener, code)
    assert not is_enrolled(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"site_id": "charite"},
        {"site_id": "St Mary"},
        {"certificate_pem": b"nothing"},
        {"root_pem": b""},
        {"gateway_address": ""},
        {"coordinator_signing_spki_der": b"no key"},
    ],
)
def test_enrol_site_answer_that_does_not_fit_keeps_nothing(
    changes: dict[str, object], folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    listener.changes = changes
    with pytest.raises(EnrolmentAnswerError):
        run(folder, listener, code)
    assert not is_enrolled(folder)


def test_enrol_site_certificate_for_another_key_keeps_nothing(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    other = generate_private_key().public_key()
    listener.changes = {"certificate_pem": listener.authority.issue(other, site_id=SiteId("st-mary"))}
    with pytest.raises(EnrolmentAnswerError, match="another key"):
        run(folder, listener, code)


def test_enrol_site_without_a_record_is_no_site(
    folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    def fail(_identity: SiteIdentity, _signer: object) -> None:
        message = "the disk is full"
        raise OSError(message)

    order = EnrolmentOrder(coordinator_address="a:1", code=code, root_fingerprint=None, agent_version="0.1.0")
    with pytest.raises(OSError, match="full"):
        enrol_site(folder, order, listener=listener, now=NOW, record=fail)
    assert not is_enrolled(folder)


def test_load_identity_before_enrolment_says_what_to_do(folder: SiteFolder) -> None:
    with pytest.raises(NotEnrolledError) as caught:
        load_identity(folder)
    assert "enrol" in caught.value.advice
    # Who enrolled into one folder and asks without naming it reads where was looked, and how another is named.
    assert str(folder.root) in str(caught.value)
    assert "--state-dir" in caught.value.advice


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"site_id": 3}'])
def test_load_identity_damaged_file_is_an_error(
    content: bytes, folder: SiteFolder, listener: FakeListener, code: EnrolmentCode
) -> None:
    run(folder, listener, code)
    folder.identity.write_bytes(content)
    with pytest.raises(EnrolmentAnswerError):
        load_identity(folder)


@pytest.mark.parametrize(
    ("code_text", "is_unauthenticated", "expected"),
    [
        ("enrolment-code-unknown", True, EnrolmentCodeUnknownError),
        ("", True, EnrolmentCodeUnknownError),
        ("enrolment-code-spent", True, EnrolmentCodeSpentError),
        ("enrolment-code-expired", True, EnrolmentCodeExpiredError),
        ("site-not-active", False, EnrolmentRefusedError),
    ],
)
def test_refusal_becomes_its_own_error_with_advice(
    code_text: str, is_unauthenticated: bool, expected: type[Exception]
) -> None:
    error = error_from_refusal(is_unauthenticated=is_unauthenticated, refusal_code=code_text, sentence="no")
    assert type(error) is expected
    assert error.advice


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fl.example.org:9000", ("fl.example.org", 9000)),
        ("fl.example.org", ("fl.example.org", 8445)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 8445)),
        (" https://fl.example.org:9000/ ", ("fl.example.org", 9000)),
    ],
)
def test_split_address_reads_what_people_write(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", ":80", "host:port", "host:0", "host:70000", "host/path:80"])
def test_split_address_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(EnrolmentInputError):
        split_address(text)


@pytest.mark.parametrize("text", ["", "ab" * 31, "zz" * 32, "ab" * 33])
def test_fingerprint_from_text_of_another_length_is_refused(text: str) -> None:
    with pytest.raises(EnrolmentInputError):
        fingerprint_from_text(text)


def test_fingerprint_from_text_reads_prefix_and_capitals() -> None:
    assert fingerprint_from_text("SHA256:" + "AB" * 32) == Sha256Hex("ab" * 32)
