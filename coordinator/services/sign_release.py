"""The release gate: two persons say, re-authenticated and in two roles, what they release, and what that means.

The first signature makes a CANDIDATE APPROVED, the second publishes it. A statement is the exact bytes of its canonical
JSON. With the second, all are written into one document that the release key signs and that lies in the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import rfc8785
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, write_checkpoint
from coordinator.db.models import AuditCheckpoint, Release, ReleaseSignature
from coordinator.db.states import ReleaseState
from coordinator.services.permissions import SIGNING_ROLES, Principal, Role
from coordinator.services.reauthenticate import Reauthenticated, Shown, reauthenticate
from coordinator.services.refusals import (
    FourEyesError,
    ManifestMismatchError,
    RequestInvalidError,
    RoleInsufficientError,
    SignatureRoleTakenError,
    StateConflictError,
)
from coordinator.services.release_folder import signed_approvals
from coordinator.services.release_marks import marks_of
from coordinator.services.resources import Resources
from coordinator.services.show_releases import ReleaseView, find_release, release_view, signatures_of
from fl_protocol.audit.events import AuditKind, text_from_instant
from fl_protocol.signing.signed import SignedBody

MAX_MEANING_LENGTH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureRequest:
    """What a person says of a release. ``role`` is None where they hold one signing role only."""

    meaning: str
    manifest_sha256: str
    role: Role | None = None


def sign_release(
    resources: Resources, *, release_id: str, request: SignatureRequest, signer: Principal, shown: Shown
) -> ReleaseView:
    """Record one person's signature; the second one publishes.

    Raises:
        NotFoundError: there is no such release.
        RequestInvalidError: no meaning was said, or it is too long, or the role must be said.
        RoleInsufficientError: the signer does not hold the role.
        ReauthenticationError, RateLimitedError, IdentityProviderUnavailableError: see ``reauthenticate``.
        StateConflictError: it is neither CANDIDATE nor APPROVED.
        ManifestMismatchError: the signer names another manifest.
        FourEyesError: this person has signed it; the attempt is recorded.
        SignatureRoleTakenError: somebody has signed in this role.
    """
    meaning = request.meaning.strip()
    if not 1 <= len(meaning) <= MAX_MEANING_LENGTH:
        raise RequestInvalidError(f"say in 1 to {MAX_MEANING_LENGTH} characters what the signature means")
    role = _role_of(request, signer)
    # Looked at before anybody is asked for a passphrase, and again in the transaction.
    resources.db.read("find_release", lambda session: _check(find_release(session, release_id), request))
    known = reauthenticate(resources, signer, shown)
    now = resources.now()

    def write(session: Session) -> ReleaseView | None:
        row = find_release(session, release_id)
        _check(row, request)
        signed = signatures_of(session, release_id)
        if any(one.user_id == signer.user_id for one in signed):
            facts = {"release_id": release_id, "code": FourEyesError.code}
            append_audit(session, AuditKind.CALL_REFUSED, actor=signer.actor, facts=facts, now=now)
            return None
        if any(one.role == role.value for one in signed):
            raise SignatureRoleTakenError(
                f"a {role.value} has signed; the other signature is made in the other role", release_id=release_id
            )
        statement = _statement(session, row, signer=signer, role=role, meaning=meaning, known=known, now=now)
        mine = ReleaseSignature(
            release_id=release_id,
            user_id=signer.user_id,
            signer=signer.actor,
            role=role.value,
            meaning=meaning,
            statement=statement,
            at=now,
        )
        session.add(mine)
        _advance(session, resources, row, [*signed, mine], now=now)
        return release_view(session, row)

    view = resources.db.run_tx("approve_release", write)
    if view is None:
        # Raised after the transaction, so that its record of the attempt stays.
        raise FourEyesError(
            "you have signed this release; the other signature is another person's",
            release_id=release_id,
            advice=f"Somebody in the other role types: wardround releases approve {release_id} --meaning TEXT",
        )
    return view


def _advance(
    session: Session, resources: Resources, row: Release, signed: list[ReleaseSignature], *, now: datetime
) -> None:
    mine = signed[-1]
    needed = 2 if resources.is_release_signed_by_two else 1
    is_enough = len(signed) >= needed
    if row.approved_at is None:
        row.approved_by, row.approved_meaning, row.approved_at = mine.signer, mine.meaning, now
    row.state = (ReleaseState.PUBLISHED if is_enough else ReleaseState.APPROVED).value
    row.published_at = now if is_enough else None
    session.flush()
    said = json.loads(mine.statement)
    # Flat, as facts are; the statement's exact bytes follow from them, and stand in the folder.
    facts = {key: value for key, value in said.items() if isinstance(value, str)}
    append_audit(session, AuditKind.RELEASE_APPROVED, actor=mine.signer, facts=facts, now=now)
    if not is_enough:
        return
    facts = {"release_id": row.release_id, "run_id": row.run_id, "manifest_sha256": row.manifest_sha256}
    append_audit(session, AuditKind.RELEASE_PUBLISHED, actor=mine.signer, facts=facts, now=now)
    head = write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
    checkpoint = session.get_one(AuditCheckpoint, head.size)
    approvals = signed_approvals(
        resources.release_signer,
        release_id=row.release_id,
        manifest_sha256=row.manifest_sha256,
        n_needed=needed,
        statements=[one.statement for one in signed],
        checkpoint=SignedBody(body=checkpoint.body, signature=checkpoint.signature),
    )
    row.approvals_body, row.approvals_signature = approvals.body, approvals.signature
    session.flush()


def _statement(
    session: Session,
    row: Release,
    *,
    signer: Principal,
    role: Role,
    meaning: str,
    known: Reauthenticated,
    now: datetime,
) -> bytes:
    document: dict[str, object] = {
        "release_id": row.release_id,
        "manifest_sha256": row.manifest_sha256,
        "user": signer.actor,
        "role": role.value,
        "meaning": meaning,
        "at": text_from_instant(now),
        "authenticated_by": known.method.value,
        "authenticated_since": text_from_instant(known.since),
        # What was known against its sources when this was said.
        "marks": [f"{mark.kind} {mark.cause}" for mark in marks_of(session, row.release_id)],
    }
    return rfc8785.dumps(document)  # type: ignore[arg-type]  # JSON values, typed as object


def _role_of(request: SignatureRequest, signer: Principal) -> Role:
    held = sorted(signer.roles & SIGNING_ROLES)
    if request.role is None and len(held) == 1:
        return held[0]
    if request.role is None and held:
        raise RequestInvalidError(f"you hold {' and '.join(held)}; say in which role you sign", roles=", ".join(held))
    if request.role is None or request.role not in held:
        raise RoleInsufficientError(
            "a release is signed by a study lead and by a privacy officer",
            needed=" or ".join(sorted(SIGNING_ROLES)),
            held=", ".join(sorted(signer.roles)) or "none",
        )
    return request.role


def _check(row: Release, request: SignatureRequest) -> None:
    if row.state not in {ReleaseState.CANDIDATE.value, ReleaseState.APPROVED.value}:
        raise StateConflictError(
            f"the release is {row.state}; only a candidate is signed", release_id=row.release_id, state=row.state
        )
    if request.manifest_sha256 != row.manifest_sha256:
        raise ManifestMismatchError(
            "the signature is over another manifest than this release's; review it again",
            release_id=row.release_id,
            manifest_sha256=row.manifest_sha256,
        )
