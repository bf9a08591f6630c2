"""What issues certificates: the server certificates of gateway and REST, and the sites' client certificates.

Invariant: the identity in a certificate is the one the coordinator decided; nothing that a request says about its
subject is read. A site's certificate lives 72 hours, is renewed by its agent (decision 0031), and is valid only while
its row says so (see the gateway). The issuer is a root of the consortium, or stands under one whose key lies elsewhere.
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
from fl_protocol.pki.errors import CertificateInvalidError
from fl_protocol.pki.identity import site_uri
from fl_protocol.pki.keys import generate_private_key, key_fingerprint, pem_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, der_from_certificate, pem_from_certificate, verify_issued_by

SITE_LIFETIME = timedelta(hours=72)
UNRENEWED_SITE_LIFETIME = timedelta(days=90)
"""For an agent of a version that does not renew by itself: a shorter life would strand it over a holiday."""
SERVER_LIFETIME = timedelta(days=397)
ROOT_LIFETIME = timedelta(days=3653)
GATEWAY_SERVER_NAME = "gateway.wardround.internal"
"""The name that sites ask for, whatever address they dial: the gateway's certificate always carries it."""

_BACKDATE = timedelta(minutes=5)
"""Clocks of hospitals differ a little: a certificate is valid from shortly before it is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A site's certificate and the facts by which it is found again; ``pem`` holds what stands above it, too."""

    pem: bytes
    sha256: Sha256Hex
    key_sha256: Sha256Hex
    root_sha256: Sha256Hex
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """A certificate (with what stands above it) and the key that belongs to it, for a listener."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Who signs: a certificate, its key, and the root above it, which may be the certificate itself.

    Invariant: certificate and key are a pair, and the root signed the certificate.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    root: x509.Certificate

    def __post_init__(self) -> None:
        if self.certificate.public_key() != self.key.public_key():
            raise KeyFileInvalidError("the root certificate does not belong to the root key")
        try:
            verify_issued_by(self.certificate, self.root)
        except CertificateInvalidError as error:
            raise KeyFileInvalidError("the issuing certificate is not signed by the root beside it") from error

    @property
    def chain_pem(self) -> bytes:
        """What has to travel behind a leaf, so that whoever knows the root alone can judge it."""
        return b"" if self.certificate == self.root else pem_from_certificate(self.certificate)

    @property
    def root_sha256(self) -> Sha256Hex:
        """By which root it is known."""
        return certificate_fingerprint(self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSlots:
    """Who issues now, and which roots are believed meanwhile. Invariant: the issuer's root is among them.

    Attributes:
        issuing: signs every new certificate.
        trusted: roots, the issuing one included.
        version: rises with every change; sites are told it with the roots.
        founding_sha256: the first root of this coordinator: its audit log is named by it, whatever comes after.
    """

    issuing: Issuer
    trusted: tuple[x509.Certificate, ...]
    version: int
    founding_sha256: Sha256Hex

    def __post_init__(self) -> None:
        if self.issuing.root not in self.trusted:
            raise KeyFileInvalidError("the root of the issuing certificate is not among the trusted ones")


class CertificateAuthority:
    """Signs, and never lets a key out. What it consists of may be replaced while it is used (``adopt``)."""

    def __init__(
        self, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, slots: CaSlots | None = None
    ) -> None:
        """Take one root that issues, and is believed, alone; or the slots of a rotation (``of_slots``).

        Raises:
            KeyFileInvalidError: certificate and key are not a pair.
        """
        if slots is None:
            issuer = Issuer(certificate=certificate, key=key, root=certificate)
            founding = certificate_fingerprint(certificate)
            slots = CaSlots(issuing=issuer, trusted=(certificate,), version=0, founding_sha256=founding)
        self._slots = slots

    @classmethod
    def of_slots(cls, slots: CaSlots) -> CertificateAuthority:
        """An authority that was rotated, or is being."""
        return cls(certificate=slots.issuing.certificate, key=slots.issuing.key, slots=slots)

    def __repr__(self) -> str:
        """Name the root by its fingerprint."""
        return f"CertificateAuthority({self.root_sha256[:16]})"

    def adopt(self, slots: CaSlots) -> None:
        """Go on with these. One assignment: whoever asks meanwhile gets all of the old or all of the new."""
        self._slots = slots

    @property
    def slots(self) -> CaSlots:
        """What it consists of now."""
        return self._slots

    @property
    def root(self) -> x509.Certificate:
        """The root certificate above what is issued now."""
        return self._slots.issuing.root

    @property
    def root_pem(self) -> bytes:
        """That root, PEM."""
        return pem_from_certificate(self.root)

    @property
    def root_sha256(self) -> Sha256Hex:
        """The SHA-256 of that root (DER), for comparison out of band."""
        return certificate_fingerprint(self.root)

    @property
    def trusted_pem(self) -> bytes:
        """Every root that is believed now, PEM, the issuing one first."""
        others = [root for root in self._slots.trusted if root != self.root]
        return b"".join(pem_from_certificate(root) for root in (self.root, *others))

    @property
    def trusted_der(self) -> tuple[bytes, ...]:
        """The same, DER, in the order of the slots."""
        return tuple(der_from_certificate(root) for root in self._slots.trusted)

    @property
    def founding_sha256(self) -> Sha256Hex:
        """The first root of this coordinator."""
        return self._slots.founding_sha256

    def issue_site_certificate(
        self, *, site_id: SiteId, csr_der: bytes, now: datetime, lifetime: timedelta = SITE_LIFETIME
    ) -> IssuedCertificate:
        """A client certificate for the key in the request, in the name that the coordinator decided.

        Raises:
            CertificateRequestInvalidError: the request is malformed, not signed by its key, or its key is not P-256.
            CertificateInvalidError: the issuer has ended.
        """
        issuer = self._slots.issuing
        public_key = read_csr(csr_der)
        certificate = issue_leaf(
            issuer.key,
            issuer.certificate,
            public_key=public_key,
            common_name=site_id,
            names=LeafNames(uris=(site_uri(site_id),)),
            validity=_validity(issuer, now, lifetime),
            serial=new_serial(),
        )
        return IssuedCertificate(
            pem=pem_from_certificate(certificate) + issuer.chain_pem,
            sha256=certificate_fingerprint(certificate),
            key_sha256=key_fingerprint(public_key),
            root_sha256=issuer.root_sha256,
            serial=format(certificate.serial_number, "x"),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def issue_server_certificate(self, *, names: Sequence[str], now: datetime) -> ServerIdentity:
        """A new key and a server certificate for these host names and addresses.

        Raises:
            CertificateInvalidError: a name cannot stand in a certificate, or the issuer has ended.
        """
        issuer = self._slots.issuing
        key = generate_private_key()
        addresses = tuple(name for name in names if _is_address(name))
        certificate = issue_leaf(
            issuer.key,
            issuer.certificate,
            public_key=key.public_key(),
            common_name=names[0],
            names=LeafNames(dns_names=tuple(name for name in names if name not in addresses), ip_addresses=addresses),
            validity=_validity(issuer, now, SERVER_LIFETIME),
            serial=new_serial(),
        )
        return ServerIdentity(
            certificate_pem=pem_from_certificate(certificate) + issuer.chain_pem, key_pem=pem_from_private_key(key)
        )


def _validity(issuer: Issuer, now: datetime, lifetime: timedelta) -> Validity:
    """For so long, but not beyond the issuer. Raises CertificateInvalidError where that has ended."""
    above = issuer.certificate
    # Where certificates live for seconds, five minutes of the past would be most of a life of which half is due.
    backdate = min(_BACKDATE, lifetime / 20)
    return Validity(
        not_before=max(now - backdate, above.not_valid_before_utc),
        not_after=min(now + lifetime, above.not_valid_after_utc),
    )


def create_root(
    *, consortium: str, now: datetime, signs_issuers: bool = False
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new root: certificate and key. One that is kept offline signs issuers, and those sign leaves.

    Raises:
        CertificateInvalidError: the consortium's name cannot stand in a certificate.
    """
    key = generate_private_key()
    validity = Validity(not_before=now - _BACKDATE, not_after=now + ROOT_LIFETIME)
    certificate = make_ca_certificate(
        key, common_name=consortium, validity=validity, serial=new_serial(), path_length=1 if signs_issuers else 0
    )
    return certificate, key


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
