"""Enrolment codes: one secret, once, and the fingerprint of the listener that may be shown it.

``WR1-<base32 of 20 random bytes>-<first 32 hexadecimal digits of the SHA-256 of the enrolment certificate>``. The code
travels out of band (a letter, a phone call); whoever types it knows from the second half that it speaks to the right
listener before the secret leaves the site. The coordinator keeps only the SHA-256 of the secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from coordinator.ca.errors import EnrolmentCodeInvalidError
from fl_protocol.ids import Sha256Hex
from fl_protocol.packing import pack
from fl_protocol.signing.keys import verify_signature

SECRET_BYTES = 20
PIN_CHARACTERS = 32
POSSESSION_KIND = b"WR/sig/enrolment"
_TEXT = re.compile(r"WR1-([A-Z2-7]{32})-([0-9a-f]{32})")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentCode:
    """A one-time secret and the pin of the listener. Invariant: 20 bytes, 32 hexadecimal digits."""

    secret: bytes = field(repr=False)
    certificate_pin: str

    def __post_init__(self) -> None:
        """Check both lengths."""
        if len(self.secret) != SECRET_BYTES or len(self.certificate_pin) != PIN_CHARACTERS:
            raise EnrolmentCodeInvalidError("an enrolment code is a secret of 20 bytes and a pin of 32 characters")

    def text(self) -> str:
        """What the site's engineer types."""
        return f"WR1-{base64.b32encode(self.secret).decode()}-{self.certificate_pin}"

    @property
    def secret_sha256(self) -> Sha256Hex:
        """What the coordinator keeps."""
        return secret_digest(self.secret)


def secret_digest(secret: bytes) -> Sha256Hex:
    """The SHA-256 of a code's secret, in hexadecimal."""
    return Sha256Hex(hashlib.sha256(secret).hexdigest())


def enrolment_code_from_text(text: str) -> EnrolmentCode:
    """Read a typed code; letter case and surrounding space do not matter.

    Raises:
        EnrolmentCodeInvalidError: the text has another form.
    """
    parts = text.strip().split("-")
    canonical = "-".join([*(part.upper() for part in parts[:-1]), parts[-1].lower()])
    match = _TEXT.fullmatch(canonical)
    if match is None:
        raise EnrolmentCodeInvalidError("an enrolment code looks like WR1-<32 letters>-<32 hexadecimal digits>")
    return EnrolmentCode(secret=base64.b32decode(match.group(1)), certificate_pin=match.group(2))


def certificate_pin(certificate_der: bytes) -> str:
    """The part of an enrolment code that names the listener: the first 32 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(certificate_der).hexdigest()[:PIN_CHARACTERS]


def is_same_digest(left: str, right: str) -> bool:
    """Compare two digests in a time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


def possession_message(secret: bytes, csr_der: bytes) -> bytes:
    """The exact bytes that a site signs to show that it holds the signing key while it asks for a TLS certificate.

    ``pack("WR/sig/enrolment", pack(SHA-256(secret), csr))``: the signature is of no use with another code or request.
    """
    return pack(POSSESSION_KIND, pack(hashlib.sha256(secret).digest(), csr_der))


def verify_possession(*, secret: bytes, csr_der: bytes, signing_spki_der: bytes, signature: bytes) -> None:
    """Check the proof of possession.

    Raises:
        SigningKeyInvalidError: the signing key is no P-256 key.
        SignatureInvalidError: the signature is not that key's over this code and this request.
    """
    verify_signature(signing_spki_der, possession_message(secret, csr_der), signature)
