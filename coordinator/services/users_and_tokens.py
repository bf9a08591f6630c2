"""People and their tokens. A token is shown once and kept as its SHA-256; a user's roles decide what it permits."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import RoleGrant, Token, User
from coordinator.errors import NotFoundError
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.refusals import (
    RequestInvalidError,
    StateConflictError,
    TokenExpiredError,
    TokenUnknownError,
    UserExistsError,
)
from coordinator.services.resources import Resources
from fl_protocol.audit.events import AuditKind

TOKEN_PREFIX = "wrt_"  # noqa: S105 # the prefix by which scanners recognise a leaked token; no secret
_LAST_USED_STEP = timedelta(minutes=1)


class Role(StrEnum):
    """What a user is to the consortium."""

    ADMIN = "admin"
    STUDY_LEAD = "study-lead"
    PRIVACY_OFFICER = "privacy-officer"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who holds the token of a request."""

    user_id: str
    name: str
    roles: frozenset[Role]
    token_id: str

    @property
    def actor(self) -> str:
        """How the audit log names this user."""
        return f"user:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """A user as others see it."""

    user_id: str
    name: str
    roles: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token without its value."""

    token_id: str
    user_id: str
    label: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token and its value, which is told this once."""

    value: str = field(repr=False)
    view: TokenView


def role_from_text(text: str) -> Role:
    """The role of that name.

    Raises:
        RequestInvalidError: there is none.
    """
    try:
        return Role(text)
    except ValueError as error:
        raise RequestInvalidError(f"a role is one of {', '.join(Role)}", role=text[:80]) from error


def token_digest(value: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(value.encode()).hexdigest()


def identify_token(resources: Resources, value: str) -> Principal:
    """Who holds this token.

    Raises:
        TokenUnknownError: it was never issued, was revoked, or its user is disabled.
        TokenExpiredError: its time is over.
    """
    now = resources.now()
    digest = token_digest(value)

    def find(session: Session) -> tuple[Principal, bool]:
        row = session.scalars(select(Token).where(Token.token_sha256 == digest)).one_or_none()
        user = session.get(User, row.user_id) if row is not None else None
        if row is None or user is None or row.revoked_at is not None or user.disabled_at is not None:
            raise TokenUnknownError("this token is not known, or was revoked")
        if row.expires_at is not None and row.expires_at <= now:
            raise TokenExpiredError("this token has expired; ask an admin for another", token_id=row.token_id)
        is_stale = row.last_used_at is None or now - row.last_used_at >= _LAST_USED_STEP
        principal = Principal(
            user_id=user.user_id, name=user.name, roles=_roles_of(session, user.user_id), token_id=row.token_id
        )
        return principal, is_stale

    principal, is_stale = resources.db.read("identify_token", find)
    if is_stale:
        resources.db.run_tx("note_token_use", lambda session: _note_use(session, principal.token_id, now))
    return principal


def add_user(resources: Resources, *, name: str, roles: Iterable[Role], actor: str) -> UserView:
    """A new user with these roles, who has no token yet.

    Raises:
        RequestInvalidError: the name is empty or too long.
        UserExistsError: the name is taken.
    """
    kept = tuple(sorted(set(roles)))
    now = resources.now()
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise RequestInvalidError("a user's name is 1 to 128 printable characters")

    def add(session: Session) -> UserView:
        if session.scalars(select(User).where(User.name == name)).first() is not None:
            raise UserExistsError("a user of this name exists", name=name)
        user = User(user_id=f"user-{secrets.token_hex(8)}", name=name, created_at=now, disabled_at=None)
        session.add(user)
        session.flush()
        session.add_all(RoleGrant(user_id=user.user_id, role=role.value) for role in kept)
        session.flush()
        facts = {"user_id": user.user_id, "name": name, "roles": ",".join(kept)}
        append_audit(session, AuditKind.USER_ADDED, actor=actor, facts=facts, now=now)
        return _user_view(session, user)

    return resources.db.run_tx("add_user", add)


def grant_role(resources: Resources, *, user: str, role: Role, actor: str) -> UserView:
    """Give a role; giving it again changes nothing.

    Raises:
        NotFoundError: there is no such user.
    """
    now = resources.now()

    def grant(session: Session) -> UserView:
        row = _find_user(session, user)
        if session.get(RoleGrant, (row.user_id, role.value)) is None:
            session.add(RoleGrant(user_id=row.user_id, role=role.value))
            session.flush()
            append_audit(
                session,
                AuditKind.ROLE_GRANTED,
                actor=actor,
                facts={"user_id": row.user_id, "role": role.value},
                now=now,
            )
        return _user_view(session, row)

    return resources.db.run_tx("grant_role", grant)


def revoke_role(resources: Resources, *, user: str, role: Role, actor: str) -> UserView:
    """Take a role; the last admin keeps it.

    Raises:
        NotFoundError: there is no such user.
        StateConflictError: nobody would be left to administer.
    """
    now = resources.now()

    def revoke(session: Session) -> UserView:
        row = _find_user(session, user)
        grant = session.get(RoleGrant, (row.user_id, role.value))
        if grant is not None:
            if role is Role.ADMIN and not _has_another_admin(session, row.user_id):
                raise StateConflictError("this is the last admin; grant the role to somebody else first")
            session.delete(grant)
            session.flush()
            append_audit(
                session,
                AuditKind.ROLE_REVOKED,
                actor=actor,
                facts={"user_id": row.user_id, "role": role.value},
                now=now,
            )
        return _user_view(session, row)

    return resources.db.run_tx("revoke_role", revoke)


def create_token(
    resources: Resources, *, user: str, label: str, actor: str, lifetime_s: float | None = None
) -> NewToken:
    """A new token of 256 random bits for a user.

    Raises:
        NotFoundError: there is no such user.
        RequestInvalidError: the label is too long or the lifetime is not positive.
    """
    if len(label) > 128 or (lifetime_s is not None and lifetime_s <= 0):
        raise RequestInvalidError("a label has at most 128 characters, and a lifetime is positive")
    now = resources.now()
    value = TOKEN_PREFIX + secrets.token_urlsafe(32)

    def create(session: Session) -> TokenView:
        owner = _find_user(session, user)
        row = Token(
            token_id=f"tok-{secrets.token_hex(8)}",
            token_sha256=token_digest(value),
            user_id=owner.user_id,
            label=label,
            created_at=now,
            expires_at=None if lifetime_s is None else now + timedelta(seconds=lifetime_s),
            last_used_at=None,
            revoked_at=None,
        )
        session.add(row)
        session.flush()
        append_audit(
            session,
            AuditKind.TOKEN_CREATED,
            actor=actor,
            facts={"user_id": owner.user_id, "token_id": row.token_id},
            now=now,
        )
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


def list_users(resources: Resources, page: PageRequest) -> Page[UserView]:
    """All users, by identifier."""

    def read(session: Session) -> list[tuple[str, UserView]]:
        query = select(User).order_by(User.user_id).limit(page.limit + 1)
        if page.after is not None:
            query = query.where(User.user_id > page.after)
        return [(user.user_id, _user_view(session, user)) for user in session.scalars(query)]

    return page_from(resources.db.read("list_users", read), page)


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


def _find_user(session: Session, user: str) -> User:
    row = session.get(User, user) or session.scalars(select(User).where(User.name == user)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such user", user=user[:80])
    return row


def _has_another_admin(session: Session, user_id: str) -> bool:
    query = select(RoleGrant).where(RoleGrant.role == Role.ADMIN.value, RoleGrant.user_id != user_id)
    return session.scalars(query).first() is not None


def _roles_of(session: Session, user_id: str) -> frozenset[Role]:
    return frozenset(Role(row) for row in session.scalars(select(RoleGrant.role).where(RoleGrant.user_id == user_id)))


def _note_use(session: Session, token_id: str, now: datetime) -> None:
    row = session.get(Token, token_id)
    if row is not None:
        row.last_used_at = now


def _user_view(session: Session, user: User) -> UserView:
    return UserView(
        user_id=user.user_id,
        name=user.name,
        roles=tuple(sorted(_roles_of(session, user.user_id))),
        created_at=user.created_at,
        disabled_at=user.disabled_at,
    )


def _token_view(row: Token) -> TokenView:
    return TokenView(
        token_id=row.token_id,
        user_id=row.user_id,
        label=row.label,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
