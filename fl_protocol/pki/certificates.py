"""Building blocks of certificates: an authority's own, the leaves under it, and a listener that signs for itself.

Instants and serial numbers come from the caller; which site gets what, and for how long, is the authority's business.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_protocol.pki.errors import CertificateInvalidError

ENROLMENT_DNS_NAME = "enrolment.wardround.internal"
"""The name in the enrolment listener's certificate. Nobody resolves it: the enrolment code pins the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when until when, both aware. Invariant: the first is before the second."""

    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        if self.not_before.tzinfo is None or self.not_after.tzinfo is None or not self.not_before < self.not_after:
            raise CertificateInvalidError("a validity is two aware instants, the first before the second")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafNames:
    """Whose certificate it is: a site's (one URI, for a client), or a server's (DNS names and addresses).

    Invariant: one of the two, not both and not neither.
    """

    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.uris) == bool(self.dns_names or self.ip_addresses):
            raise CertificateInvalidError("a certificate is either a site's or a server's")

    def to_extension(self) -> x509.SubjectAlternativeName:
        """The subject alternative names.

        Raises:
            CertificateInvalidError: a name cannot stand in a certificate.
        """
        try:
            return x509.SubjectAlternativeName(
                [
                    *(x509.UniformResourceIdentifier(uri) for uri in self.uris),
                    *(x509.DNSName(name) for name in self.dns_names),
                    *(x509.IPAddress(ipaddress.ip_address(address)) for address in self.ip_addresses),
                ]
            )
        except ValueError as error:
            raise CertificateInvalidError("a name cannot stand in a certificate") from error


def new_serial() -> int:
    """A random serial number of 159 bits (RFC 5280, 4.1.2.2)."""
    return x509.random_serial_number()


def make_ca_certificate(
    ca_key: ec.EllipticCurvePrivateKey, *, common_name: str, validity: Validity, serial: int, path_length: int = 0
) -> x509.Certificate:
    """A self-signed certificate of an authority: it signs leaves only, or (path length 1) issuers that do."""
    name = _name(common_name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    return (
        _builder(name, issuer=name, public_key=ca_key.public_key(), validity=validity, serial=serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def issue_issuer(
    root_key: ec.EllipticCurvePrivateKey,
    root_cert: x509.Certificate,
    *,
    public_key: ec.EllipticCurvePublicKey,
    common_name: str,
    validity: Validity,
    serial: int,
) -> x509.Certificate:
    """A certificate of an authority that signs leaves under this root.

    Raises:
        CertificateInvalidError: the key is not the root's, the root may sign leaves only, or would end before it.
    """
    if root_key.public_key() != root_cert.public_key():
        raise CertificateInvalidError("the key is not that of the root's certificate")
    constraints = root_cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca or constraints.path_length == 0:
        raise CertificateInvalidError("this root may sign leaves only; make one that is to be kept offline")
    if validity.not_before < root_cert.not_valid_before_utc or validity.not_after > root_cert.not_valid_after_utc:
        raise CertificateInvalidError("a certificate is not valid longer than its authority's")
    above = root_cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    subject = _name(common_name)
    return (
        _builder(subject, issuer=root_cert.subject, public_key=public_key, validity=validity, serial=serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def issue_leaf(
    ca_key: ec.EllipticCurvePrivateKey,
    ca_cert: x509.Certificate,
    *,
    public_key: ec.EllipticCurvePublicKey,
    common_name: str,
    names: LeafNames,
    validity: Validity,
    serial: int,
) -> x509.Certificate:
    """A leaf certificate for ``public_key``: for a client where ``names`` is a site's, else for a server.

    Raises:
        CertificateInvalidError: the key is not the authority's, a name is none, or it would outlive its authority.
    """
    if ca_key.public_key() != ca_cert.public_key():
        raise CertificateInvalidError("the key is not that of the authority's certificate")
    if validity.not_before < ca_cert.not_valid_before_utc or validity.not_after > ca_cert.not_valid_after_utc:
        raise CertificateInvalidError("a certificate is not valid longer than its authority's")
    issuer_identifier = ca_cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier)
    builder = _builder(
        _name(common_name), issuer=ca_cert.subject, public_key=public_key, validity=validity, serial=serial
    )
    return _leaf(builder, public_key, names).add_extension(authority, critical=False).sign(ca_key, hashes.SHA256())


def make_enrolment_certificate(key: ec.EllipticCurvePrivateKey, *, validity: Validity, serial: int) -> x509.Certificate:
    """The enrolment listener's self-signed certificate; sites know it by the digest in their enrolment code."""
    name = _name(ENROLMENT_DNS_NAME)
    builder = _builder(name, issuer=name, public_key=key.public_key(), validity=validity, serial=serial)
    return _leaf(builder, key.public_key(), LeafNames(dns_names=(ENROLMENT_DNS_NAME,))).sign(key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise CertificateInvalidError("a common name has 1 to 64 characters", length=len(common_name)) from error


def _builder(
    subject: x509.Name,
    *,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: Validity,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
    )


def _leaf(
    builder: x509.CertificateBuilder, public_key: ec.EllipticCurvePublicKey, names: LeafNames
) -> x509.CertificateBuilder:
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if names.uris else ExtendedKeyUsageOID.SERVER_AUTH
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names.to_extension(), critical=False)
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
