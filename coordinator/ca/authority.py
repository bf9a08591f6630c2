"""The consortium's root: issues the server certificates of gateway and REST, and the sites' client certificates.

Invariant: the identity in a certificate is the one the coordinator decided; nothing that a request says about its
subject is read. A site's certificate lives 90 days, and is valid only while its row says so (see the gateway).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.errors import KeyFileInvalidError
from fl_protocol.ids import Sha256Hex, SiteId
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
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate

SITE_LIFETIME = timedelta(days=90)
SERVER_LIFETIME = timedelta(days=397)
ROOT_LIFETIME = timedelta(days=3653)
GATEWAY_SERVER_NAME = "gateway.wardround.internal"
"""The name that sites ask for, whatever address they dial: the gateway's certificate always carries it."""

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
            KeyFileInvalidError: certificate and key are not a pair.
        """
        if certificate.public_key() != key.public_key():
            raise KeyFileInvalidError("the root certificate does not belong to the root key")
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        """Name the root by its fingerprint."""
        return f"CertificateAuthority({self.root_sha256[:16]})"

    @property
    def root(self) -> x509.Certificate:
        """The root certificate."""
        return self._certificate

    @property
    def root_pem(self) -> bytes:
        """The root certificate, PEM."""
        return pem_from_certificate(self._certificate)

    @property
    def root_sha256(self) -> Sha256Hex:
        """The SHA-256 of the root certificate (DER), for comparison out of band."""
        return certificate_fingerprint(self._certificate)

    def issue_site_certificate(self, *, site_id: SiteId, csr_der: bytes, now: datetime) -> IssuedCertificate:
        """A client certificate for the key in the request, in the name that the coordinator decided.

        Raises:
            CertificateRequestInvalidError: the request is malformed, not signed by its key, or its key is not P-256.
            CertificateInvalidError: the root ends before the certificate would.
        """
        certificate = issue_leaf(
            self._key,
            self._certificate,
            public_key=read_csr(csr_der),
            common_name=site_id,
            names=LeafNames(uris=(site_uri(site_id),)),
            validity=self._validity(now, SITE_LIFETIME),
            serial=new_serial(),
        )
        return IssuedCertificate(
            pem=pem_from_certificate(certificate),
            sha256=certificate_fingerprint(certificate),
            serial=format(certificate.serial_number, "x"),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def issue_server_certificate(self, *, names: Sequence[str], now: datetime) -> ServerIdentity:
        """A new key and a server certificate for these host names and addresses.

        Raises:
            CertificateInvalidError: a name cannot stand in a certificate, or the root ends before it would.
        """
        key = generate_private_key()
        addresses = tuple(name for name in names if _is_address(name))
        certificate = issue_leaf(
            self._key,
            self._certificate,
            public_key=key.public_key(),
            common_name=names[0],
            names=LeafNames(dns_names=tuple(name for name in names if name not in addresses), ip_addresses=addresses),
            validity=self._validity(now, SERVER_LIFETIME),
            serial=new_serial(),
        )
        return ServerIdentity(certificate_pem=pem_from_certificate(certificate), key_pem=pem_from_private_key(key))

    def _validity(self, now: datetime, lifetime: timedelta) -> Validity:
        return Validity(
            not_before=max(now - _BACKDATE, self._certificate.not_valid_before_utc), not_after=now + lifetime
        )


def create_root(*, consortium: str, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new root: certificate and key.

    Raises:
        CertificateInvalidError: the consortium's name cannot stand in a certificate.
    """
    key = generate_private_key()
    validity = Validity(not_before=now - _BACKDATE, not_after=now + ROOT_LIFETIME)
    return make_ca_certificate(key, common_name=consortium, validity=validity, serial=new_serial()), key


def create_enrolment_identity(*, now: datetime) -> ServerIdentity:
    """The enrolment listener's own certificate: self-signed, kept for the coordinator's life, pinned in every code."""
    key = generate_private_key()
    validity = Validity(not_before=now - _BACKDATE, not_after=now + ROOT_LIFETIME)
    certificate = make_enrolment_certificate(key, validity=validity, serial=new_serial())
    return ServerIdentity(certificate_pem=pem_from_certificate(certificate), key_pem=pem_from_private_key(key))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
