"""Entropy and keys that are the same every time. Safety: for tests; whoever knows the seed knows every secret."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fl_protocol.secagg.key_agreement import KeyAgreementError, agree, hkdf, key_pair_from_private
from fl_protocol.secagg.prg import Keystream
from fl_protocol.secagg.sealing import UnsealError
from fl_protocol.signing.keys import EcdsaSigner

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class SeededEntropy:
    """The keystream of a seed's digest, read from the start."""

    def __init__(self, seed: str) -> None:
        """Two sources with the same seed give the same bytes."""
        self._stream = Keystream(hashlib.sha256(seed.encode()).digest())

    def draw(self, n_bytes: int) -> bytes:
        """The next bytes."""
        return self._stream.read(n_bytes)


def seeded_signer(seed: str) -> EcdsaSigner:
    """A P-256 signer whose key follows from the seed."""
    number = int.from_bytes(hashlib.sha512(seed.encode()).digest(), "big") % (_P256_ORDER - 1) + 1
    return EcdsaSigner(ec.derive_private_key(number, ec.SECP256R1()))


class SeededSealer:
    """A sealer whose ciphertexts follow from its inputs, as long as HPKE's are and with the same refusals.

    X25519 with an ephemeral key derived from the plaintext, HKDF, AES-256-GCM. Safety: not HPKE, and for tests only.
    """

    def seal(self, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        """``ephemeral public key || ciphertext || tag``."""
        ephemeral = key_pair_from_private(hkdf(plaintext, salt=public, info=info))
        return ephemeral.public + self._cipher(agree(ephemeral.private, public), info).encrypt(
            bytes(12), plaintext, b""
        )

    def unseal(self, ciphertext: bytes, *, private: bytes, info: bytes) -> bytes:
        """The plaintext. Raises UnsealError."""
        try:
            cipher = self._cipher(agree(private, ciphertext[:32]), info)
            return cipher.decrypt(bytes(12), ciphertext[32:], b"")
        except (KeyAgreementError, InvalidTag, ValueError) as error:
            raise UnsealError("the ciphertext does not open") from error

    @staticmethod
    def _cipher(secret: bytes, info: bytes) -> AESGCM:
        return AESGCM(hkdf(secret, salt=b"", info=info))
