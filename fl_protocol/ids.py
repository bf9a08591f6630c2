"""Names of the things that both ends speak about. A name is checked where it enters; afterwards its type says so."""

from __future__ import annotations

import re
from typing import NewType

from fl_protocol.errors import ProtocolError

SiteId = NewType("SiteId", str)
"""The name of a site, chosen at invitation and never given to another: lower-case letters, digits and hyphens."""

RunId = NewType("RunId", str)
"""A run's identifier, ``run-`` and 26 characters of base 32."""

Sha256Hex = NewType("Sha256Hex", str)
"""A SHA-256 digest as 64 lower-case hexadecimal characters."""

_SITE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RUN_ID = re.compile(r"run-[a-z2-7]{26}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class IdentifierInvalidError(ProtocolError):
    """A string is not a name of the kind that was expected."""

    code = "identifier-invalid"


def site_id_from_text(text: str) -> SiteId:
    """Check that ``text`` is a site name.

    Raises:
        IdentifierInvalidError: it is not 1 to 63 lower-case letters, digits and hyphens, starting with no hyphen.
    """
    if _SITE_ID.fullmatch(text) is None:
        message = "a site name is 1 to 63 lower-case letters, digits and hyphens, and does not start with a hyphen"
        raise IdentifierInvalidError(message, value=text[:80])
    return SiteId(text)


def run_id_from_text(text: str) -> RunId:
    """Check that ``text`` is a run identifier.

    Raises:
        IdentifierInvalidError: it is not ``run-`` and 26 characters of base 32.
    """
    if _RUN_ID.fullmatch(text) is None:
        raise IdentifierInvalidError("a run identifier is 'run-' and 26 characters a-z, 2-7", value=text[:80])
    return RunId(text)


def sha256_hex_from_text(text: str) -> Sha256Hex:
    """Check that ``text`` is a SHA-256 digest in hexadecimal.

    Raises:
        IdentifierInvalidError: it is not 64 lower-case hexadecimal characters.
    """
    if _SHA256_HEX.fullmatch(text) is None:
        raise IdentifierInvalidError("a SHA-256 digest is 64 lower-case hexadecimal characters", value=text[:80])
    return Sha256Hex(text)
