from __future__ import annotations

import hashlib
import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from fl_protocol.ids import SiteId
from fl_protocol.pki.certificates import (
    ENROLMENT_DNS_NAME,
    LeafNames,
    Validity,
    issue_leaf,
    make_ca_certificate,
    make_enrolment_certificate,
    new_serial,
)
from fl_protocol.pki.errors import CertificateInvalidError, SiteIdentityInvalidError
from fl_protocol.pki.identity import site_id_from_certificate, site_uri
from fl_protocol.pki.tls import (
    certificate_fingerprint,
    certificate_from_der,
    certificate_from_pem,
    der_from_certificate,
    pem_from_certificate,
    remaining_validity,
    site_id_from_peer_pem,
    verify_issued_by,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR = Validity(not_before=NOW, not_after=NOW + timedelta(days=365))
MONTH = Validity(not_before=NOW, not_after=NOW + timedelta(days=30))
CA_KEY = ec.derive_private_key(21, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(22, ec.SECP256R1())
LEAF_KEY = ec.derive_private_key(23, ec.SECP256R1())
CA = make_ca_certificate(CA_KEY, common_name="Test consortium", validity=YEAR, serial=1)
SITE = LeafNames(uris=(site_uri(SiteId("st-mary")),))
SERVER = LeafNames(dns_names=("gateway.example",), ip_addresses=("127.0.0.1", "::1"))


def leaf(names: LeafNames = SITE, validity: Validity = MONTH) -> x509.Certificate:
    return issue_leaf(
        CA_KEY, CA, public_key=LEAF_KEY.public_key(), common_name="leaf", names=names, validity=validity, serial=77
    )


def test_server_leaf_is_verified_by_an_independent_path_builder() -> None:
    verifier = PolicyBuilder().store(Store([CA])).time(NOW + timedelta(days=1))
    chain = verifier.build_server_verifier(x509.DNSName("gateway.example")).verify(leaf(SERVER), [])
    assert chain[-1] == CA
    verifier.build_server_verifier(x509.IPAddress(ipaddress.ip_address("::1"))).verify(leaf(SERVER), [])


def test_site_leaf_is_a_client_certificate_with_one_uri() -> None:
    certificate = leaf()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert site_id_from_certificate(certificate) == "st-mary"
    assert certificate.serial_number == 77
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.not_valid_after_utc == MONTH.not_after


def test_site_of_a_peers_certificate_is_told() -> None:
    pem = pem_from_certificate(leaf())
    assert site_id_from_peer_pem(pem, ca_certificate=CA, now=NOW + timedelta(days=2)) == "st-mary"


@pytest.mark.parametrize("now", [NOW - timedelta(seconds=1), NOW + timedelta(days=31)])
def test_peers_certificate_outside_its_validity_is_refused(now: datetime) -> None:
    with pytest.raises(CertificateInvalidError):
        site_id_from_peer_pem(pem_from_certificate(leaf()), ca_certificate=CA, now=now)


def test_peers_certificate_of_another_authority_of_the_same_name_is_refused() -> None:
    impostor = make_ca_certificate(OTHER_KEY, common_name="Test consortium", validity=YEAR, serial=1)
    certificate = issue_leaf(
        OTHER_KEY,
        impostor,
        public_key=LEAF_KEY.public_key(),
        common_name="leaf",
        names=SITE,
        validity=MONTH,
        serial=2,
    )
    with pytest.raises(CertificateInvalidError):
        verify_issued_by(certificate, CA)
    with pytest.raises(CertificateInvalidError):
        site_id_from_peer_pem(pem_from_certificate(certificate), ca_certificate=CA, now=NOW)


def test_servers_certificate_is_no_sites() -> None:
    with pytest.raises(CertificateInvalidError) as caught:
        site_id_from_peer_pem(pem_from_certificate(leaf(SERVER)), ca_certificate=CA, now=NOW)
    assert "client" in caught.value.message


@pytest.mark.parametrize(
    "uris",
    [
        ("wardround://site/a", "wardround://site/b"),
        ("https://elsewhere",),
        ("wardround://site/NOT",),
    ],
)
def test_certificate_that_names_no_single_site_is_refused(uris: tuple[str, ...]) -> None:
    with pytest.raises(SiteIdentityInvalidError):
        site_id_from_certificate(leaf(LeafNames(uris=uris)))


def test_authoritys_own_certificate_names_no_site() -> None:
    with pytest.raises(SiteIdentityInvalidError):
        site_id_from_certificate(CA)


def test_authority_signs_leaves_only() -> None:
    constraints = CA.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    verify_issued_by(CA, CA)


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"uris": ("wardround://site/a",), "dns_names": ("a.example",)},
        {"uris": ("wardround://site/a",), "ip_addresses": ("127.0.0.1",)},
    ],
)
def test_names_of_both_or_neither_kind_are_refused(names: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(CertificateInvalidError):
        LeafNames(**names)


@pytest.mark.parametrize("names", [LeafNames(ip_addresses=("not-an-address",)), LeafNames(dns_names=("ä.example",))])
def test_name_that_cannot_stand_in_a_certificate_is_refused(names: LeafNames) -> None:
    with pytest.raises(CertificateInvalidError):
        leaf(names)


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [(NOW, NOW), (NOW + timedelta(1), NOW), (datetime(2026, 1, 1), NOW)],  # noqa: DTZ001
)
def test_validity_that_is_no_span_is_refused(not_before: datetime, not_after: datetime) -> None:
    with pytest.raises(CertificateInvalidError):
        Validity(not_before=not_before, not_after=not_after)


def test_leaf_that_would_outlive_its_authority_is_refused() -> None:
    with pytest.raises(CertificateInvalidError):
        leaf(validity=Validity(not_before=NOW, not_after=NOW + timedelta(days=366)))


def test_leaf_by_a_key_that_is_not_the_authoritys_is_refused() -> None:
    with pytest.raises(CertificateInvalidError):
        issue_leaf(
            OTHER_KEY, CA, public_key=LEAF_KEY.public_key(), common_name="l", names=SITE, validity=MONTH, serial=2
        )


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_common_name_of_no_or_too_many_characters_is_refused(name: str) -> None:
    with pytest.raises(CertificateInvalidError):
        make_ca_certificate(CA_KEY, common_name=name, validity=YEAR, serial=1)


def test_enrolment_certificate_is_its_own_root_and_a_server() -> None:
    certificate = make_enrolment_certificate(LEAF_KEY, validity=MONTH, serial=5)
    verify_issued_by(certificate, certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [ENROLMENT_DNS_NAME] == ["enrolment.wardround.internal"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_fingerprint_and_forms_of_a_certificate_agree() -> None:
    certificate = leaf()
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert certificate_fingerprint(certificate) == hashlib.sha256(der).hexdigest()
    assert certificate_from_der(der_from_certificate(certificate)) == certificate
    assert certificate_from_pem(pem_from_certificate(certificate)) == certificate


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(CertificateInvalidError):
        certificate_from_pem(data)
    with pytest.raises(CertificateInvalidError):
        certificate_from_der(data)


def test_remaining_validity_is_told_at_both_ends() -> None:
    assert remaining_validity(leaf(), NOW) == timedelta(days=30)
    assert remaining_validity(leaf(), MONTH.not_after) == timedelta(0)


def test_serials_are_positive_and_differ() -> None:
    first, second = new_serial(), new_serial()
    assert first != second
    assert 0 < first < 2**159
