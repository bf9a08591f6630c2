"""A body and a signature over its exact bytes, bound to the kind of statement that it makes.

The bytes that were received are the bytes that are verified: nothing is parsed and rendered again in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.packing import pack, unpack
from fl_protocol.signing.keys import Signer, verify_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBody:
    """Exact bytes and a signature over them; what it says holds only after ``verify_body``."""

    body: bytes
    signature: bytes

    def encode(self) -> bytes:
        """``pack(body, signature)``."""
        return pack(self.body, self.signature)

    @classmethod
    def decode(cls, data: bytes) -> SignedBody:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError."""
        body, signature = unpack(data, 2)
        return cls(body=body, signature=signature)


def sign_body(signer: Signer, kind: str, body: bytes) -> SignedBody:
    """Sign ``pack(kind, body)``: a signature for one kind of statement says nothing as another."""
    return SignedBody(body=body, signature=signer.sign(pack(kind.encode(), body)))


def verify_body(spki_der: bytes, kind: str, signed: SignedBody) -> bytes:
    """The body, once its signature is known to be that key's over ``pack(kind, body)``.

    Raises:
        SigningKeyInvalidError: ``spki_der`` is no P-256 key.
        SignatureInvalidError: the signature is not that key's over these bytes and this kind.
    """
    verify_signature(spki_der, pack(kind.encode(), signed.body), signed.signature)
    return signed.body
