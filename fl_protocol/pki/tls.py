"""What the two ends of a TLS connection ask of a certificate: its fingerprint, its validity, its issuer, its site."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.errors import CertificateInvalidError
from fl_protocol.pki.identity import site_id_from_certificate


def pem_from_certificate(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def der_from_certificate(certificate: x509.Certificate) -> bytes:
    """The certificate in DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_from_pem(pem: bytes) -> x509.Certificate:
    """Read one certificate.

    Raises:
        CertificateInvalidError: the bytes are no certificate in PEM.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateInvalidError("the bytes are no certificate in PEM") from error


def certificate_from_der(der: bytes) -> x509.Certificate:
    """Read one certificate, for example the one that a TLS peer showed.

    Raises:
        CertificateInvalidError: the bytes are no certificate in DER.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise CertificateInvalidError("the bytes are no certificate in DER") from error


def certificate_fingerprint(certificate: x509.Certificate) -> Sha256Hex:
    """SHA-256 of the certificate's DER, in hexadecimal."""
    return Sha256Hex(hashlib.sha256(der_from_certificate(certificate)).hexdigest())


def remaining_validity(certificate: x509.Certificate, now: datetime) -> timedelta:
    """How long the certificate stays valid.

    Raises:
        CertificateInvalidError: it is not valid yet, or no longer.
    """
    if now < certificate.not_valid_before_utc:
        raise CertificateInvalidError("the certificate is not valid yet", not_before=_text(certificate, "before"))
    if now > certificate.not_valid_after_utc:
        raise CertificateInvalidError("the certificate has expired", not_after=_text(certificate, "after"))
    return certificate.not_valid_after_utc - now


def verify_issued_by(certificate: x509.Certificate, ca_certificate: x509.Certificate) -> None:
    """Check that the authority's key signed the certificate.

    Raises:
        CertificateInvalidError: it did not.
    """
    try:
        certificate.verify_directly_issued_by(ca_certificate)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateInvalidError("the certificate is not this authority's") from error


def verify_site_chain(chain_pem: bytes, roots: Sequence[x509.Certificate]) -> tuple[x509.Certificate, x509.Certificate]:
    """A site's certificate and the root above it, all that stands between them checked by the library's rules.

    Judged at the instant at which the certificate begins: whether it lives now is the caller's question, and hospitals'
    clocks differ.

    Raises:
        CertificateInvalidError: the bytes are no chain of certificates, or it does not lead to one of the roots.
    """
    try:
        leaf, *between = x509.load_pem_x509_certificates(chain_pem)
        verifier = PolicyBuilder().store(Store(list(roots))).time(leaf.not_valid_before_utc).build_client_verifier()
        verified = verifier.verify(leaf, between)
    except (ValueError, VerificationError) as error:
        raise CertificateInvalidError("the certificate does not lead to a trusted root") from error
    return leaf, verified.chain[-1]


def site_id_from_peer_pem(pem: bytes, *, ca_certificate: x509.Certificate, now: datetime) -> SiteId:
    """The site that a peer's certificate names, all of it checked again behind the TLS library.

    In this order: the authority's signature, the validity, the usage (client), the one name.

    Raises:
        CertificateInvalidError: it is malformed, of another authority, not valid now, or not for a client.
        SiteIdentityInvalidError: it does not name exactly one site.
    """
    certificate = certificate_from_pem(pem)
    verify_issued_by(certificate, ca_certificate)
    remaining_validity(certificate, now)
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateInvalidError("the certificate does not say what it is for") from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise CertificateInvalidError("the certificate is not for a client")
    return site_id_from_certificate(certificate)


def _text(certificate: x509.Certificate, end: str) -> str:
    instant = certificate.not_valid_before_utc if end == "before" else certificate.not_valid_after_utc
    return instant.isoformat()
