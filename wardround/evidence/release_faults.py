"""Why a release folder is not believed: a closed list, one word each, and one way to say it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from fl_protocol.errors import ProtocolError
from fl_protocol.signing.signed import SignedBody, verify_body
from wardround.documents import Document, text_of
from wardround.errors import CommandError, EvidenceFaultError

Found = TypeVar("Found")
ADVICE = "Do not use this folder. Download the release again and compare with whoever runs the coordinator."
_MALFORMED = (CommandError, ProtocolError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)


class ReleaseFault(StrEnum):
    """What does not hold; it stands as ``reason`` among the facts of the error."""

    MANIFEST_SIGNATURE = "manifest-signature"
    ANOTHER_KEY = "another-key"
    FILE_MISSING = "file-missing"
    FILE_ALTERED = "file-altered"
    FILE_UNNAMED = "file-unnamed"
    PATH_OUTSIDE = "path-outside"
    MALFORMED = "malformed"
    FORMAT_UNKNOWN = "format-unknown"
    RUN_SPEC = "run-spec"
    ADAPTER = "adapter"
    SITE_APPROVAL = "site-approval"
    ROUND_MANIFEST = "round-manifest"
    ROUND_RESULT = "round-result"
    ROUND_CHAIN = "round-chain"
    RECEIPT = "receipt"
    ACKNOWLEDGEMENT = "acknowledgement"
    PRIVACY_LEDGER = "privacy-ledger"
    AUDIT_HEAD = "audit-head"
    NOT_APPROVED = "not-approved"
    APPROVALS_SIGNATURE = "approvals-signature"
    APPROVALS_ABOUT_ANOTHER = "approvals-about-another"
    SIGNATURES_MISSING = "signatures-missing"
    ONE_SIGNATURE = "one-signature"
    SAME_PERSON = "same-person"
    SAME_ROLE = "same-role"


def fault(reason: ReleaseFault, message: str, *, file: str, advice: str = ADVICE) -> EvidenceFaultError:
    """The error for one reason, with the file that it is about."""
    return EvidenceFaultError(message, advice=advice, reason=reason.value, file=file)


def reading(file: str, read: Callable[[], Found]) -> Found:
    """What ``read`` gives; whatever is wrong with the file's form becomes one refusal.

    Raises:
        EvidenceFaultError: MALFORMED. One that ``read`` raises itself passes as it is.
    """
    try:
        return read()
    except EvidenceFaultError:
        raise
    except _MALFORMED as error:
        raise fault(ReleaseFault.MALFORMED, f"{file} is not of the form of this evidence", file=file) from error


def json_file(folder: Path, file: str) -> object:
    """The JSON in a file of the folder. Raises ValueError, OSError."""
    return json.loads((folder / file).read_bytes())


def bytes_under(document: Document, key: str) -> bytes:
    """Base 64 under a key. Raises CommandError, ValueError."""
    return base64.b64decode(text_of(document, key), validate=True)


def signed_in(document: Document) -> SignedBody:
    """A signed body as the folder's files write one. Raises CommandError, ValueError."""
    return SignedBody(body=bytes_under(document, "body"), signature=bytes_under(document, "signature"))


def is_signed_by(spki: bytes, kind: str, signed: SignedBody) -> bool:
    """Whether the signature is that key's over these bytes as this kind of statement."""
    try:
        verify_body(spki, kind, signed)
    except ProtocolError:
        return False
    return True
