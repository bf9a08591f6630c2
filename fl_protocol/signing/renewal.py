"""How a site whose certificate has ended proves who it is: its signing key answers the coordinator's fresh challenge.

The challenge is signed by the coordinator's key, which the site pinned at enrolment, over the site's own random bytes
and the certificate of the listener that both are connected by: the site knows whom it answers before it does. What the
site signs is of use for this challenge and this request only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex
from fl_protocol.packing import PackedBytesInvalidError, pack, u64, u64_from_bytes, unpack
from fl_protocol.signing.keys import Signer, verify_signature
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

CHALLENGE_KIND = "WR/sig/renewal-challenge"
PROOF_KIND = "WR/sig/renewal-proof"
NONCE_BYTES = 32
_DIGEST_BYTES = 32


class RenewalChallengeInvalidError(ProtocolError):
    """Bytes are no challenge."""

    code = "renewal-challenge-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalChallenge:
    """A challenge.

    Attributes:
        client_nonce: the site's 32 random bytes.
        server_nonce: the coordinator's.
        signing_key_sha256: whose answer is asked for.
        listener_sha256: SHA-256 of the certificate (DER) of the listener that gave it.
        expires_at: until when it may be answered; whole milliseconds.
    """

    client_nonce: bytes
    server_nonce: bytes
    signing_key_sha256: Sha256Hex
    listener_sha256: Sha256Hex
    expires_at: datetime

    def __post_init__(self) -> None:
        if len(self.client_nonce) != NONCE_BYTES or len(self.server_nonce) != NONCE_BYTES:
            raise RenewalChallengeInvalidError("both random parts of a challenge have 32 bytes")

    def encode(self) -> bytes:
        """``pack(client nonce, server nonce, signing key, listener, u64(milliseconds since 1970))``."""
        return pack(
            self.client_nonce,
            self.server_nonce,
            bytes.fromhex(self.signing_key_sha256),
            bytes.fromhex(self.listener_sha256),
            u64(round(self.expires_at.timestamp() * 1000)),
        )

    @classmethod
    def decode(cls, data: bytes) -> RenewalChallenge:
        """Read what ``encode`` wrote. Raises RenewalChallengeInvalidError."""
        try:
            client, server, key, listener, expires = unpack(data, 5)
            if len(key) != _DIGEST_BYTES or len(listener) != _DIGEST_BYTES:
                raise RenewalChallengeInvalidError("a digest has 32 bytes")
            return cls(
                client_nonce=client,
                server_nonce=server,
                signing_key_sha256=Sha256Hex(key.hex()),
                listener_sha256=Sha256Hex(listener.hex()),
                expires_at=datetime.fromtimestamp(u64_from_bytes(expires) / 1000, UTC),
            )
        except (PackedBytesInvalidError, ValueError, OverflowError, OSError) as error:
            raise RenewalChallengeInvalidError("the bytes are no challenge") from error


def sign_challenge(signer: Signer, challenge: RenewalChallenge) -> SignedBody:
    """The challenge under the coordinator's signing key."""
    return sign_body(signer, CHALLENGE_KIND, challenge.encode())


def verify_challenge(spki_der: bytes, signed: SignedBody) -> RenewalChallenge:
    """The challenge, once its signature is known to be that key's.

    Raises:
        SigningKeyInvalidError, SignatureInvalidError: it is not.
        RenewalChallengeInvalidError: the body is no challenge.
    """
    return RenewalChallenge.decode(verify_body(spki_der, CHALLENGE_KIND, signed))


def proof_message(challenge: SignedBody, statement: SignedBody) -> bytes:
    """What the site signs: ``pack(kind, pack(SHA-256(challenge), SHA-256(statement)))``."""
    digests = pack(hashlib.sha256(challenge.body).digest(), hashlib.sha256(statement.body).digest())
    return pack(PROOF_KIND.encode(), digests)


def verify_proof(spki_der: bytes, *, challenge: SignedBody, statement: SignedBody, signature: bytes) -> None:
    """Check the answer to a challenge. Raises SigningKeyInvalidError, SignatureInvalidError."""
    verify_signature(spki_der, proof_message(challenge, statement), signature)
