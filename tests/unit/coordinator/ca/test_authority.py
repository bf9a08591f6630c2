from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.ca.authority import CertificateAuthority, create_enrolment_identity, create_root
from coordinator.ca.errors import KeyFileInvalidError
from fl_protocol.ids import SiteId
from fl_protocol.pki.errors import CertificateRequestInvalidError
from fl_protocol.pki.keys import generate_private_key

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    certificate, key = create_root(consortium="Rare disease network", now=NOW)
    return CertificateAuthority(certificate=certificate, key=key)


def csr_that_asks_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"wardround://site/{name}")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_site_certificate_has_the_decided_name_whatever_the_request_asks_for(authority: CertificateAuthority) -> None:
    csr = csr_that_asks_for("charite", generate_private_key())
    issued = authority.issue_site_certificate(site_id=SiteId("st-mary"), csr_der=csr, now=NOW)
    certificate = x509.load_pem_x509_certificate(issued.pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["wardround://site/st-mary"]
    assert certificate.subject.rfc4514_string() == "CN=st-mary"
    assert issued.not_after - NOW == timedelta(hours=72)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_server_certificate_verifies_against_the_root_for_its_names_only(authority: CertificateAuthority) -> None:
    identity = authority.issue_server_certificate(names=("localhost", "127.0.0.1"), now=NOW)
    leaf = x509.load_pem_x509_certificate(identity.certificate_pem)
    store = verification.Store([authority.root])
    builder = verification.PolicyBuilder().store(store).time(NOW)
    assert builder.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])[0] == leaf
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("elsewhere.example")).verify(leaf, [])


def test_request_that_is_not_signed_by_its_key_is_refused(authority: CertificateAuthority) -> None:
    csr = bytearray(csr_that_asks_for("st-mary", generate_private_key()))
    csr[-1] ^= 1
    with pytest.raises(CertificateRequestInvalidError):
        authority.issue_site_certificate(site_id=SiteId("st-mary"), csr_der=bytes(csr), now=NOW)


def test_authority_with_another_key_is_refused() -> None:
    certificate, _ = create_root(consortium="A", now=NOW)
    with pytest.raises(KeyFileInvalidError):
        CertificateAuthority(certificate=certificate, key=generate_private_key())


def test_enrolment_identity_is_self_signed_for_the_internal_name() -> None:
    certificate = x509.load_pem_x509_certificate(create_enrolment_identity(now=NOW).certificate_pem)
    assert certificate.issuer == certificate.subject
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["enrolment.wardround.internal"]


def test_private_parts_are_not_shown(authority: CertificateAuthority) -> None:
    identity = authority.issue_server_certificate(names=("localhost",), now=NOW)
    assert "PRIVATE KEY" not in repr(identity)
    assert "key" not in repr(authority).lower().replace("certificateauthority", "")
