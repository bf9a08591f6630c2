"""P-256 private keys as values and as PEM bytes. Where they are kept and who may read that is the caller's."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.errors import PrivateKeyInvalidError


def generate_private_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key, from the operating system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_from_private_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS #8 PEM; the file that holds it must be readable by its owner only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read what ``pem_from_private_key`` wrote.

    Raises:
        PrivateKeyInvalidError: the bytes are no unencrypted P-256 private key in PEM.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PrivateKeyInvalidError("the bytes are no unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PrivateKeyInvalidError("the private key is not on curve P-256")
    return key


def spki_from_private_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as SubjectPublicKeyInfo, DER."""
    return spki_from_public_key(key.public_key())


def spki_from_public_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> Sha256Hex:
    """SHA-256 of the public key's SubjectPublicKeyInfo."""
    return Sha256Hex(hashlib.sha256(spki_from_public_key(key)).hexdigest())
