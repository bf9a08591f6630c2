"""Entropy and keys that are the same every time. Safety: for tests; whoever knows the seed knows every secret."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.secagg.prg import Keystream
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
