"""Sealing a share to one site: HPKE base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM (RFC 9180).

A sealer is injected, because HPKE draws its own ephemeral key: a recorded exchange replays recorded ciphertexts.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fl_protocol.errors import ProtocolError

OVERHEAD_BYTES = 32 + 16
"""What sealing adds: the encapsulated key and the tag."""


class UnsealError(ProtocolError):
    """A ciphertext was not sealed to this key under this info, or was altered since."""

    code = "unseal-failed"


class Sealer(Protocol):
    """Seals to a public key, opens with the private one; ``info`` binds the purpose."""

    def seal(self, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        """``enc || ciphertext || tag``: OVERHEAD_BYTES longer than the plaintext."""
        ...

    def unseal(self, ciphertext: bytes, *, private: bytes, info: bytes) -> bytes:
        """The plaintext. Raises UnsealError."""
        ...


class HpkeSealer:
    """HPKE of RFC 9180, one message a context, no associated data."""

    __slots__ = ("_suite",)

    def __init__(self) -> None:
        """Fix the suite: nothing of it is negotiable."""
        self._suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

    def seal(self, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        """``enc || ciphertext || tag``.

        Raises:
            UnsealError: nobody could open it, because the public key is none.
        """
        try:
            return self._suite.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info)
        except ValueError as error:
            raise UnsealError("the public key cannot be sealed to") from error

    def unseal(self, ciphertext: bytes, *, private: bytes, info: bytes) -> bytes:
        """The plaintext.

        Raises:
            UnsealError: sealed to another key, under another info, or altered.
        """
        try:
            return self._suite.decrypt(ciphertext, X25519PrivateKey.from_private_bytes(private), info)
        except (InvalidTag, ValueError) as error:
            raise UnsealError("the ciphertext does not open") from error
