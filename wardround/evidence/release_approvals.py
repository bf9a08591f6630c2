"""Who released a folder: the persons' signatures over its manifest, which the coordinator's release key attests.

1. release_approvals.json is of its kind, and its key is the one that signed the manifest
2. the signature holds over the canonical form (RFC 8785) of what it says
3. it, and each statement in it, name this release and this manifest
4. there are as many as the coordinator's rule asks for, and that is two, unless one is accepted expressly
5. they are of different persons, in different roles, and each says what it means
6. the head of the audit log in it, which the signatures' events are under, is signed by the coordinator's key

What this cannot show is that the persons were they: the coordinator checked that, and vouches for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import rfc8785

from fl_protocol.audit.checkpoint import verify_checkpoint
from fl_protocol.errors import ProtocolError
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody
from wardround.documents import Document, as_document, documents_of, integer_of, text_of
from wardround.evidence.release_evidence import CHECKPOINT
from wardround.evidence.release_faults import (
    ReleaseFault,
    bytes_under,
    fault,
    is_signed_by,
    json_file,
    reading,
    signed_in,
)

RELEASE_APPROVALS = "evidence/release_approvals.json"
_KIND = "WR/sig/release-approvals"
_SAFE_RULE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonSignature:
    """One person's statement."""

    user: str
    role: str
    meaning: str
    at: str
    authenticated_by: str
    authenticated_since: str
    marks: tuple[str, ...]
    statement_sha256: str


def verify_release_approvals(
    folder: Path, manifest: Document, *, manifest_sha256: str, key_sha256: str, accept_one: bool = False
) -> tuple[PersonSignature, ...]:
    """Do the six checks.

    Args:
        folder: of a release.
        manifest: its manifest, verified.
        manifest_sha256: the digest that the statements must name.
        key_sha256: the fingerprint of the key that signed the manifest.
        accept_one: let one signature do, where the coordinator's rule asks for one.

    Raises:
        EvidenceFaultError: one does not hold; ``reason`` is among its facts.
    """
    if not (folder / RELEASE_APPROVALS).is_file():
        raise fault(
            ReleaseFault.NOT_APPROVED,
            "nobody has released this folder: it is a candidate, or was taken before two persons signed it",
            file=RELEASE_APPROVALS,
            advice="Candidates are for review: wardround releases verify DIR --candidate",
        )
    approvals = reading(RELEASE_APPROVALS, lambda: _signed_document(folder, key_sha256))
    about = (approvals.get("release_id"), approvals.get("manifest_sha256"))
    if about != (manifest.get("release_id"), manifest_sha256):
        raise _refused(ReleaseFault.APPROVALS_ABOUT_ANOTHER, "the signatures are over another release")
    signatures = reading(
        RELEASE_APPROVALS,
        lambda: tuple(_signature(said, about=about) for said in documents_of(approvals, "statements")),
    )
    n_needed = reading(RELEASE_APPROVALS, lambda: integer_of(approvals, "signatures_needed"))
    _check_number(signatures, n_needed=n_needed, accept_one=accept_one)
    reading(RELEASE_APPROVALS, lambda: _check_head(folder, approvals))
    return signatures


def _signed_document(folder: Path, key_sha256: str) -> Document:
    document = as_document(json_file(folder, RELEASE_APPROVALS), source=RELEASE_APPROVALS)
    approvals = as_document(document.get("approvals"), source=RELEASE_APPROVALS)
    spki = bytes_under(document, "spki")
    signed = SignedBody(
        body=rfc8785.dumps(dict(approvals)),  # type: ignore[arg-type]  # JSON values, typed as object
        signature=bytes_under(document, "signature"),
    )
    if text_of(document, "kind") != _KIND or spki_fingerprint(spki) != key_sha256:
        raise _refused(ReleaseFault.APPROVALS_SIGNATURE, "the signatures are not attested by the release key")
    if not is_signed_by(spki, _KIND, signed):
        raise _refused(ReleaseFault.APPROVALS_SIGNATURE, "the signature does not hold: a statement was altered")
    return approvals


def _signature(said: Document, *, about: tuple[object, object]) -> PersonSignature:
    if (said.get("release_id"), said.get("manifest_sha256")) != about:
        raise _refused(ReleaseFault.APPROVALS_ABOUT_ANOTHER, "a statement is about another release")
    body = rfc8785.dumps(dict(said))  # type: ignore[arg-type]  # JSON values, typed as object
    marks = said.get("marks")
    if not isinstance(marks, list):
        raise TypeError("a statement says which marks were known")
    return PersonSignature(
        user=text_of(said, "user"),
        role=text_of(said, "role"),
        meaning=text_of(said, "meaning"),
        at=text_of(said, "at"),
        authenticated_by=text_of(said, "authenticated_by"),
        authenticated_since=text_of(said, "authenticated_since"),
        marks=tuple(str(mark) for mark in marks),
        statement_sha256=hashlib.sha256(body).hexdigest(),
    )


def _check_number(signatures: tuple[PersonSignature, ...], *, n_needed: int, accept_one: bool) -> None:
    if n_needed < 1 or len(signatures) != n_needed or not all(one.meaning.strip() for one in signatures):
        raise _refused(ReleaseFault.SIGNATURES_MISSING, "a signature is missing, or says nothing")
    if n_needed < _SAFE_RULE and not accept_one:
        raise fault(
            ReleaseFault.ONE_SIGNATURE,
            "one person released this: the coordinator's rule asked for one signature only",
            file=RELEASE_APPROVALS,
            advice="If that is enough for you: wardround releases verify DIR --accept-one-signature",
        )
    if len({one.user for one in signatures}) != len(signatures):
        raise _refused(ReleaseFault.SAME_PERSON, "one person signed twice")
    if len({one.role for one in signatures}) != len(signatures):
        raise _refused(ReleaseFault.SAME_ROLE, "two signed in the same role")


def _check_head(folder: Path, approvals: Document) -> None:
    # The key was compared with the manifest's fingerprint when the evidence was checked.
    spki = bytes_under(as_document(json_file(folder, CHECKPOINT), source=CHECKPOINT), "signing_spki")
    try:
        verify_checkpoint(spki, signed_in(as_document(approvals.get("audit_checkpoint"), source=RELEASE_APPROVALS)))
    except ProtocolError as error:
        message = "the head of the audit log at the release is not signed by the coordinator"
        raise fault(ReleaseFault.AUDIT_HEAD, message, file=RELEASE_APPROVALS) from error


def _refused(reason: ReleaseFault, message: str) -> Exception:
    return fault(reason, message, file=RELEASE_APPROVALS)
