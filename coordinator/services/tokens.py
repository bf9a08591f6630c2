"""Bearer tokens: 256 random bits, shown once, kept as a digest, with an end; scopes narrow what they may do."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Token, User
from coordinator.errors import NotFoundError
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.permissions import Principal, checked_scopes
from coordinator.services.refusals import RequestInvalidError, TokenExpiredError, TokenUnknownError
from coordinator.services.resources import Resources
from coordinator.services.users import find_local_user, roles_of
from fl_protocol.audit.events import AuditKind

TOKEN_PREFIX = "wrt_"  # noqa: S105 # the prefix by which scanners recognise a leaked token; no secret
_LAST_USED_STEP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token without its value. ``scopes`` is None for all that its user's roles permit."""

    token_id: str
    user_id: str
    label: str
    scopes: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What a new token is to be. None as lifetime is the default, None as scopes is as wide as may be."""

    user: str
    label: str
    lifetime_s: float | None = None
    scopes: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token and its value, which is told this once."""

    value: str = field(repr=False)
    view: TokenView


def token_digest(value: str, *, is_narrowed: bool = False) -> str:
    """What is kept of a token.

    Safety: a narrowed token is kept under another digest, which a program that knows no scopes never computes: during a
    rolling upgrade it is unknown there, and not as wide as its user.
    """
    return hashlib.sha256((b"wardround/narrowed-token\0" if is_narrowed else b"") + value.encode()).hexdigest()


def identify_token(resources: Resources, value: str) -> Principal:
    """Who holds this token.

    Raises:
        TokenUnknownError: it was never issued, was revoked, or its user is disabled.
        TokenExpiredError: its time is over.
    """
    now = resources.now()
    digests = (token_digest(value), token_digest(value, is_narrowed=True))

    def find(session: Session) -> tuple[Principal, bool]:
        row = session.scalars(select(Token).where(Token.token_sha256.in_(digests))).one_or_none()
        user = session.get(User, row.user_id) if row is not None else None
        if row is None or user is None or row.revoked_at is not None or user.disabled_at is not None:
            raise TokenUnknownError("this token is not known, or was revoked")
        if row.expires_at is not None and row.expires_at <= now:
            raise TokenExpiredError("this token has expired; ask an admin for another", token_id=row.token_id)
        is_stale = row.last_used_at is None or now - row.last_used_at >= _LAST_USED_STEP
        principal = Principal(
            user_id=user.user_id,
            name=user.name,
            roles=roles_of(session, user.user_id),
            token_id=row.token_id,
            scopes=_scopes_of(row),
        )
        return principal, is_stale

    principal, is_stale = resources.db.read("identify_token", find)
    if is_stale:
        resources.db.run_tx("note_token_use", lambda session: _note_use(session, principal.token_id, now))
    return principal


def create_token(
    resources: Resources, request: TokenRequest, *, actor: str, maker: Principal | None = None
) -> NewToken:
    """A new token of 256 random bits for a user.

    Args:
        resources: what services work with.
        request: whose it is to be, for how long and for what.
        actor: who asks, for the audit log.
        maker: whose token asks; None for the program itself.

    Raises:
        NotFoundError: there is no such user.
        RequestInvalidError: the label is too long, a scope does not exist, the user is an identity provider's, or the
            lifetime is not above 0 and within the longest that is allowed.
        ScopeInsufficientError: the maker's own token is narrower.
    """
    rules = resources.token_rules
    lifetime_s = rules.default_lifetime_s if request.lifetime_s is None else request.lifetime_s
    if len(request.label) > 128 or not 0 < lifetime_s <= rules.max_lifetime_s:
        raise RequestInvalidError(
            "a label has at most 128 characters, and a lifetime is above 0 and within the longest that is allowed",
            max_lifetime_s=rules.max_lifetime_s,
        )
    scopes = checked_scopes(request.scopes, maker=maker)
    now = resources.now()
    value = TOKEN_PREFIX + secrets.token_urlsafe(32)

    def create(session: Session) -> TokenView:
        owner = find_local_user(session, request.user)
        row = Token(
            token_id=f"tok-{secrets.token_hex(8)}",
            token_sha256=token_digest(value, is_narrowed=scopes is not None),
            user_id=owner.user_id,
            label=request.label,
            scopes=None if scopes is None else " ".join(scopes),
            created_at=now,
            expires_at=now + timedelta(seconds=lifetime_s),
            last_used_at=None,
            revoked_at=None,
        )
        session.add(row)
        session.flush()
        facts = {"user_id": owner.user_id, "token_id": row.token_id, "scopes": row.scopes}
        append_audit(session, AuditKind.TOKEN_CREATED, actor=actor, facts=facts, now=now)
        return _token_view(row)

    return NewToken(value=value, view=resources.db.run_tx("create_token", create))


def revoke_token(resources: Resources, *, token_id: str, actor: str, owner: str | None) -> TokenView:
    """End a token's life; ending it again changes nothing.

    Args:
        resources: what services work with.
        token_id: which token.
        actor: who asks.
        owner: the user whose tokens may be ended by the caller; None for anybody's.

    Raises:
        NotFoundError: there is no such token, or it is another user's.
    """
    now = resources.now()

    def revoke(session: Session) -> TokenView:
        row = session.get(Token, token_id)
        if row is None or (owner is not None and row.user_id != owner):
            raise NotFoundError("there is no such token", token_id=token_id[:80])
        if row.revoked_at is None:
            row.revoked_at = now
            session.flush()
            append_audit(
                session,
                AuditKind.TOKEN_REVOKED,
                actor=actor,
                facts={"user_id": row.user_id, "token_id": token_id},
                now=now,
            )
        return _token_view(row)

    return resources.db.run_tx("revoke_token", revoke)


def list_tokens(resources: Resources, page: PageRequest, *, user_id: str | None) -> Page[TokenView]:
    """Tokens of one user, or of all."""

    def read(session: Session) -> list[tuple[str, TokenView]]:
        query = select(Token).order_by(Token.token_id).limit(page.limit + 1)
        if user_id is not None:
            query = query.where(Token.user_id == user_id)
        if page.after is not None:
            query = query.where(Token.token_id > page.after)
        return [(token.token_id, _token_view(token)) for token in session.scalars(query)]

    return page_from(resources.db.read("list_tokens", read), page)


def _note_use(session: Session, token_id: str, now: datetime) -> None:
    row = session.get(Token, token_id)
    if row is not None:
        row.last_used_at = now


def _scopes_of(row: Token) -> tuple[str, ...] | None:
    return None if row.scopes is None else tuple(row.scopes.split())


def _token_view(row: Token) -> TokenView:
    return TokenView(
        token_id=row.token_id,
        user_id=row.user_id,
        label=row.label,
        scopes=_scopes_of(row),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
