"""What a person of ours shows besides their token when they sign: a passphrase, kept as a slow digest of it only.

A token lies in a file or in a program; whoever takes it can ask in that person's name. The passphrase is in their head,
so that the token alone signs nothing. People of an identity provider have none: they show a token of a fresh login.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import SigningPassphrase
from coordinator.services.permissions import Principal
from coordinator.services.refusals import RateLimitedError, ReauthenticationError, RequestInvalidError
from coordinator.services.resources import Resources
from coordinator.services.users import find_local_user
from fl_protocol.audit.events import AuditFact, AuditKind

MIN_LENGTH, MAX_LENGTH = 12, 256
_MAX_FAILURES = 5
_LOCKED_FOR = timedelta(minutes=15)
_SALT_BYTES = 16
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 15, 8, 1
_SCRYPT_MEMORY = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PassphraseStanding:
    """Since when a person has this passphrase."""

    set_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    salt: bytes
    verifier: bytes
    set_at: datetime
    locked_until: datetime | None


def set_passphrase(
    resources: Resources, *, principal: Principal, passphrase: str, current: str | None
) -> PassphraseStanding:
    """Set one's own passphrase: the first time freely, afterwards with the present one.

    Raises:
        RequestInvalidError: it is too short, too long, or the caller is an identity provider's.
        ReauthenticationError, RateLimitedError: there is one, and ``current`` is not it; see ``check_passphrase``.
    """
    if principal.is_external:
        raise RequestInvalidError("the identity provider's people sign with a token of a fresh login")
    if not MIN_LENGTH <= len(passphrase) <= MAX_LENGTH:
        raise RequestInvalidError(f"a signing passphrase has {MIN_LENGTH} to {MAX_LENGTH} characters")
    if _held(resources, principal.user_id) is not None:
        check_passphrase(resources, principal=principal, passphrase=current)
    salt, now = secrets.token_bytes(_SALT_BYTES), resources.now()
    verifier = _verifier(passphrase, salt)

    def write(session: Session) -> None:
        held = session.get(SigningPassphrase, principal.user_id)
        facts: dict[str, AuditFact] = {"user_id": principal.user_id, "is_first": held is None}
        # Safety: between the look above and this, another request may have set one; that one is not replaced unasked.
        if held is not None and current is None:
            raise ReauthenticationError("a passphrase was set meanwhile", reason="current-passphrase-missing")
        row = held or SigningPassphrase(user_id=principal.user_id)
        row.salt, row.verifier, row.set_at, row.n_failures, row.locked_until = salt, verifier, now, 0, None
        session.add(row)
        session.flush()
        append_audit(session, AuditKind.PASSPHRASE_SET, actor=principal.actor, facts=facts, now=now)

    resources.db.run_tx("set_passphrase", write)
    return PassphraseStanding(set_at=now)


def reset_passphrase(resources: Resources, *, user: str, actor: str) -> None:
    """Forget a person's passphrase, so that they may set another; doing it again changes nothing.

    Raises:
        NotFoundError: there is no such user.
        RequestInvalidError: it is the identity provider's.
    """
    now = resources.now()

    def reset(session: Session) -> None:
        row = find_local_user(session, user)
        held = session.get(SigningPassphrase, row.user_id)
        if held is not None:
            session.delete(held)
            session.flush()
            facts = {"user_id": row.user_id, "name": row.name}
            append_audit(session, AuditKind.PASSPHRASE_RESET, actor=actor, facts=facts, now=now)

    resources.db.run_tx("reset_passphrase", reset)


def check_passphrase(resources: Resources, *, principal: Principal, passphrase: str | None) -> PassphraseStanding:
    """Hold what was typed against what was set. Five wrong ones in a row, and none is looked at for a quarter hour.

    Raises:
        ReauthenticationError: none was set, none was sent, or it is another; recorded where it is another.
        RateLimitedError: too many were wrong.
    """
    advice = "Set yours: wardround passphrase set"
    held, now = _held(resources, principal.user_id), resources.now()
    if held is None:
        raise ReauthenticationError("you have no signing passphrase", reason="passphrase-not-set", advice=advice)
    if held.locked_until is not None and held.locked_until > now:
        wait_s = int((held.locked_until - now).total_seconds()) + 1
        raise RateLimitedError("too many wrong passphrases; wait", retry_after_s=wait_s)
    if not passphrase:
        raise ReauthenticationError("send your signing passphrase with this", reason="passphrase-missing")
    is_right = len(passphrase) <= MAX_LENGTH and hmac.compare_digest(_verifier(passphrase, held.salt), held.verifier)
    resources.db.run_tx(
        "note_passphrase", lambda session: _note(session, principal=principal, is_right=is_right, now=now)
    )
    if not is_right:
        raise ReauthenticationError("this is not your signing passphrase", reason="passphrase-wrong")
    return PassphraseStanding(set_at=held.set_at)


def _note(session: Session, *, principal: Principal, is_right: bool, now: datetime) -> None:
    row = session.get(SigningPassphrase, principal.user_id)
    if row is None:
        return
    row.n_failures = 0 if is_right else row.n_failures + 1
    row.locked_until = now + _LOCKED_FOR if row.n_failures >= _MAX_FAILURES else None
    if row.locked_until is not None:
        row.n_failures = 0
    session.flush()
    if not is_right:
        facts: dict[str, AuditFact] = {"code": ReauthenticationError.code, "is_locked": row.locked_until is not None}
        append_audit(session, AuditKind.CALL_REFUSED, actor=principal.actor, facts=facts, now=now)


def _held(resources: Resources, user_id: str) -> _Held | None:
    def read(session: Session) -> _Held | None:
        row = session.get(SigningPassphrase, user_id)
        if row is None:
            return None
        return _Held(salt=row.salt, verifier=row.verifier, set_at=row.set_at, locked_until=row.locked_until)

    return resources.db.read("find_passphrase", read)


def _verifier(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        passphrase.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=_SCRYPT_MEMORY, dklen=32
    )
