"""ECDSA P-256 signing keys: one long-lived key a site, apart from its TLS key. A pin is the SHA-256 of the public key.

Signatures are deterministic (RFC 6979), so that sending the same message again sends the same bytes.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex


class SignatureInvalidError(ProtocolError):
    """A signature is not that of the named key over exactly these bytes."""

    code = "signature-invalid"


class SigningKeyInvalidError(ProtocolError):
    """Bytes that should be a P-256 public key (SubjectPublicKeyInfo, DER) are not."""

    code = "signing-key-invalid"


class Signer(Protocol):
    """Signs exact bytes with a key that it does not give away."""

    @property
    def spki_der(self) -> bytes:
        """The public key as SubjectPublicKeyInfo, DER."""
        ...

    def sign(self, message: bytes) -> bytes:
        """An ECDSA-P256-SHA256 signature of ``message``, DER."""
        ...


class EcdsaSigner:
    """A signer over a private key in memory."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        """Take the key; only P-256 is spoken here."""
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise SigningKeyInvalidError("a signing key is on curve P-256", curve=private_key.curve.name)
        self._private_key = private_key
        self._spki_der = private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def __repr__(self) -> str:
        """Name the key by its fingerprint; never show it."""
        return f"EcdsaSigner({spki_fingerprint(self._spki_der)[:16]})"

    @property
    def spki_der(self) -> bytes:
        """The public key as SubjectPublicKeyInfo, DER."""
        return self._spki_der

    def sign(self, message: bytes) -> bytes:
        """An ECDSA-P256-SHA256 signature of ``message``, DER, deterministic by RFC 6979."""
        return self._private_key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def spki_fingerprint(spki_der: bytes) -> Sha256Hex:
    """A pin: the SHA-256 of the public key's SubjectPublicKeyInfo (DER), in hexadecimal."""
    return Sha256Hex(hashlib.sha256(spki_der).hexdigest())


def public_key_from_spki(spki_der: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a P-256 public key.

    Raises:
        SigningKeyInvalidError: the bytes are no P-256 SubjectPublicKeyInfo.
    """
    try:
        key = serialization.load_der_public_key(spki_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyInvalidError("the bytes are no public key in DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SigningKeyInvalidError("a signing key is on curve P-256")
    return key


def verify_signature(spki_der: bytes, message: bytes, signature: bytes) -> None:
    """Check an ECDSA-P256-SHA256 signature over exactly ``message``.

    Raises:
        SigningKeyInvalidError: ``spki_der`` is no P-256 key.
        SignatureInvalidError: the signature is not that key's over these bytes.
    """
    try:
        public_key_from_spki(spki_der).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureInvalidError(
            "the signature does not match the bytes and the key", key_sha256=spki_fingerprint(spki_der)
        ) from error
