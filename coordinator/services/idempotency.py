"""Same key, same request, same answer: kept so that a client which lost an answer may ask again without harm."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.models import IdempotencyKey
from coordinator.services.refusals import (
    IdempotencyKeyReusedError,
    RequestInProgressError,
    RequestInvalidError,
    SecretShownOnceError,
)
from coordinator.services.resources import Resources

SECRET_MEMBERS = frozenset({"passphrase", "current_passphrase", "fresh_token"})
"""Members of a request's body that are in no digest."""
_IN_PROGRESS = 0
_WITHHELD = b""
_ABANDONED_AFTER = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestIdentity:
    """Who asks what under which key."""

    user_id: str
    key: str
    request_sha256: str

    def __post_init__(self) -> None:
        """Bound the key."""
        if not 1 <= len(self.key) <= 128 or not self.key.isprintable():
            raise RequestInvalidError("an Idempotency-Key has 1 to 128 printable characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """What was answered."""

    status: int
    body: bytes


def request_digest(*, method: str, path: str, body: bytes) -> str:
    """What makes two requests the same: method, path with query, and the exact body but for its secrets.

    Safety: the digest is kept. One over a passphrase would be a way to guess it without asking.
    """
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(), _without_secrets(body)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _without_secrets(body: bytes) -> bytes:
    if not any(name.encode() in body for name in SECRET_MEMBERS) and b"\\u" not in body:
        return body
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        # It is refused as what it is: no answer is kept for it.
        return b""
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key not in SECRET_MEMBERS}
    return json.dumps(document, sort_keys=True).encode()


def reserve_answer(resources: Resources, identity: RequestIdentity) -> KeptAnswer | None:
    """The kept answer; None when this caller has to make it (and then to keep or to release it).

    Raises:
        IdempotencyKeyReusedError: the key came with another request.
        RequestInProgressError: the same request is at work now.
        SecretShownOnceError: the answer held a secret, which was not kept.
    """
    now = resources.now()

    def reserve(session: Session) -> KeptAnswer | None:
        row = session.get(IdempotencyKey, (identity.user_id, identity.key))
        if row is None:
            session.add(_reservation(identity, now))
            return None
        if row.request_sha256 != identity.request_sha256:
            raise IdempotencyKeyReusedError("this Idempotency-Key came with another request before")
        if row.status == _IN_PROGRESS:
            if now - row.created_at < _ABANDONED_AFTER:
                raise RequestInProgressError("a request with this Idempotency-Key is at work; ask again shortly")
            # Whoever reserved it died before it answered.
            row.created_at = now
            return None
        if row.response == _WITHHELD:
            raise SecretShownOnceError("this was done; its answer held a secret that is not shown again")
        return KeptAnswer(status=row.status, body=row.response)

    return resources.db.run_tx("reserve_answer", reserve)


def keep_answer(resources: Resources, identity: RequestIdentity, *, status: int, body: bytes | None) -> None:
    """Keep an answer; None for one that holds a secret: then only the fact is kept."""

    def keep(session: Session) -> None:
        row = session.get(IdempotencyKey, (identity.user_id, identity.key))
        if row is not None:
            row.status = status
            row.response = _WITHHELD if body is None else body

    resources.db.run_tx("keep_answer", keep)


def release_answer(resources: Resources, identity: RequestIdentity) -> None:
    """Forget a reservation whose request failed inside, so that it may be tried again."""

    def release(session: Session) -> None:
        row = session.get(IdempotencyKey, (identity.user_id, identity.key))
        if row is not None and row.status == _IN_PROGRESS:
            session.delete(row)

    resources.db.run_tx("release_answer", release)


def _reservation(identity: RequestIdentity, now: datetime) -> IdempotencyKey:
    return IdempotencyKey(
        user_id=identity.user_id,
        key=identity.key,
        request_sha256=identity.request_sha256,
        status=_IN_PROGRESS,
        response=_WITHHELD,
        created_at=now,
    )
