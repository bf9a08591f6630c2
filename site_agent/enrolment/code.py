"""The enrolment code that an operator types: a one-time secret, and the fingerprint of the listener that may see it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from site_agent.enrolment.errors import EnrolmentCodeInvalidError

_SHAPE = re.compile(r"WR1-([A-Z2-7]{32})-([0-9A-F]{32})")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentCode:
    """A code. Invariant: 20 secret bytes, and 32 hexadecimal characters of a SHA-256."""

    secret: bytes = field(repr=False)
    certificate_prefix: str

    def names_certificate(self, certificate_der: bytes) -> bool:
        """Whether this certificate is the one that the code was made for."""
        return hmac.compare_digest(hashlib.sha256(certificate_der).hexdigest()[:32], self.certificate_prefix)


def code_from_text(text: str) -> EnrolmentCode:
    """Read a typed or pasted code; case and surrounding blanks do not matter.

    Raises:
        EnrolmentCodeInvalidError: it is not ``WR1-``, 32 characters of base 32, a hyphen and 32 hexadecimal ones.
    """
    match = _SHAPE.fullmatch("".join(text.split()).upper())
    if match is None:
        # The text may hold most of a secret: it is not repeated.
        message = "this is not an enrolment code"
        advice = "Copy the whole code: WR1-, 32 letters and digits, a hyphen, 32 letters and digits."
        raise EnrolmentCodeInvalidError(message, advice=advice, n_characters=len(text))
    return EnrolmentCode(secret=base64.b32decode(match.group(1)), certificate_prefix=match.group(2).lower())
