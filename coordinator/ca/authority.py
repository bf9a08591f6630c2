"""The consortium's root: issues the server certificates of gateway and REST, and the sites' client certificates.

Invariant: the identity in a certificate is the one the coordinator decided; nothing that a request says about its
subject is read. A site's certificate lives 90 days, and is valid only while its row says so (see the gateway).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.ca.errors import CertificateRequestInvalidError
from coordinator.ca.key_files import generate_key, pem_from_key
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.identity import site_uri

SITE_LIFETIME = timedelta(days=90)
SERVER_LIFETIME = timedelta(days=397)
ROOT_LIFETIME = timedelta(days=3653)
ENROLMENT_SERVER_NAME = "enrolment.wardround.internal"
GATEWAY_SERVER_NAME = "gateway.wardround.internal"
_BACKDATE = timedelta(minutes=5)
"""Clocks of hospitals differ a little: a certificate is valid from shortly before it is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A site's certificate and the facts by which it is found again."""

    pem: bytes
    sha256: Sha256Hex
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """A certificate and the key that belongs to it, for a listener."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


class CertificateAuthority:
    """The root key and certificate; signs, and never lets the key out."""

    def __init__(self, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Take a root that belongs together.

        Raises:
            CertificateRequestInvalidError: certificate and key are not a pair.
        """
        if certificate.public_key() != key.public_key():
            raise CertificateRequestInvalidError("the root certificate does not belong to the root key")
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        """Name the root by its fingerprint."""
        return f"CertificateAuthority({self.root_sha256[:16]})"

    @property
    def root_pem(self) -> bytes:
        """The root certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def root_sha256(self) -> Sha256Hex:
        """The SHA-256 of the root certificate (DER), for comparison out of band."""
        return certificate_sha256(self._certificate)

    @property
    def root_not_after(self) -> datetime:
        """The end of the root's life."""
        return self._certificate.not_valid_after_utc

    def issue_site_certificate(self, *, site_id: SiteId, csr_der: bytes, now: datetime) -> IssuedCertificate:
        """A client certificate for the key in the request, in the name that the coordinator decided.

        Raises:
            CertificateRequestInvalidError: the request is malformed, not signed by its key, or its key is not P-256.
        """
        public_key = _public_key_from_csr(csr_der)
        certificate = (
            self._builder(common_name=site_id, public_key=public_key, now=now, lifetime=SITE_LIFETIME)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(site_uri(site_id))]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return IssuedCertificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM),
            sha256=certificate_sha256(certificate),
            serial=format(certificate.serial_number, "x"),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def issue_server_certificate(self, *, names: Sequence[str], now: datetime) -> ServerIdentity:
        """A new key and a server certificate for these host names and addresses, the root appended."""
        key = generate_key()
        certificate = (
            self._builder(common_name=names[0], public_key=key.public_key(), now=now, lifetime=SERVER_LIFETIME)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return ServerIdentity(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM) + self.root_pem,
            key_pem=pem_from_key(key),
        )

    def _builder(
        self, *, common_name: str, public_key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        issuer_ski = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            _leaf_builder(common_name=common_name, public_key=public_key, now=now, lifetime=lifetime)
            .issuer_name(self._certificate.subject)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False
            )
        )


def create_root(*, consortium: str, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new root: certificate and key."""
    key = generate_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, "Wardround root"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def create_enrolment_identity(*, now: datetime) -> ServerIdentity:
    """The enrolment listener's own certificate: self-signed, kept for the coordinator's life, pinned in every code."""
    key = generate_key()
    builder = _leaf_builder(
        common_name=ENROLMENT_SERVER_NAME, public_key=key.public_key(), now=now, lifetime=ROOT_LIFETIME
    )
    certificate = (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ENROLMENT_SERVER_NAME)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(ENROLMENT_SERVER_NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return ServerIdentity(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM), key_pem=pem_from_key(key)
    )


def certificate_sha256(certificate: x509.Certificate) -> Sha256Hex:
    """The SHA-256 of a certificate (DER), in hexadecimal."""
    return Sha256Hex(hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())


def certificate_der(certificate_pem: bytes) -> bytes:
    """The first certificate of a PEM text as DER."""
    return x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)


def _leaf_builder(
    *, common_name: str, public_key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _public_key_from_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_der_x509_csr(csr_der)
        is_valid = request.is_signature_valid
        public_key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRequestInvalidError("the certificate request is not PKCS#10 in DER") from error
    if not is_valid:
        raise CertificateRequestInvalidError("the certificate request is not signed by its own key")
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise CertificateRequestInvalidError("a site's TLS key is on curve P-256")
    return public_key
