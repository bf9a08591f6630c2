"""People and their roles."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import RoleGrant, User
from coordinator.errors import NotFoundError
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.permissions import Role
from coordinator.services.refusals import RequestInvalidError, StateConflictError, UserExistsError
from coordinator.services.resources import Resources
from fl_protocol.audit.events import AuditKind

EXTERNAL_USER_ID = "oidc-"
"""What begins the identifier of a user whose roles and tokens are an identity provider's."""
EXTERNAL_NAME = "oidc:"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """A user as others see it."""

    user_id: str
    name: str
    roles: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None


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
    if name.startswith(EXTERNAL_NAME):
        raise RequestInvalidError(f"{EXTERNAL_NAME} begins the names of an identity provider's people only")

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
        return user_view(session, user)

    return resources.db.run_tx("add_user", add)


def grant_role(resources: Resources, *, user: str, role: Role, actor: str) -> UserView:
    """Give a role; giving it again changes nothing.

    Raises:
        NotFoundError: there is no such user.
        RequestInvalidError: an identity provider gives this user's roles.
    """
    now = resources.now()

    def grant(session: Session) -> UserView:
        row = find_local_user(session, user)
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
        return user_view(session, row)

    return resources.db.run_tx("grant_role", grant)


def revoke_role(resources: Resources, *, user: str, role: Role, actor: str) -> UserView:
    """Take a role; the last admin keeps it.

    Raises:
        NotFoundError: there is no such user.
        StateConflictError: nobody would be left to administer.
    """
    now = resources.now()

    def revoke(session: Session) -> UserView:
        row = find_user(session, user)
        grant = session.get(RoleGrant, (row.user_id, role.value))
        if grant is not None:
            if role is Role.ADMIN and not has_another_admin(session, row.user_id):
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
        return user_view(session, row)

    return resources.db.run_tx("revoke_role", revoke)


def list_users(resources: Resources, page: PageRequest) -> Page[UserView]:
    """All users, by identifier."""

    def read(session: Session) -> list[tuple[str, UserView]]:
        query = select(User).order_by(User.user_id).limit(page.limit + 1)
        if page.after is not None:
            query = query.where(User.user_id > page.after)
        return [(user.user_id, user_view(session, user)) for user in session.scalars(query)]

    return page_from(resources.db.read("list_users", read), page)


def find_user(session: Session, user: str) -> User:
    """A user by identifier or name.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(User, user) or session.scalars(select(User).where(User.name == user)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such user", user=user[:80])
    return row


def find_local_user(session: Session, user: str) -> User:
    """A user whose roles and tokens are given here.

    Raises:
        NotFoundError: there is none.
        RequestInvalidError: the identity provider gives them.
    """
    row = find_user(session, user)
    if row.user_id.startswith(EXTERNAL_USER_ID):
        raise RequestInvalidError("this person's roles and tokens are the identity provider's", user=row.name)
    return row


def has_another_admin(session: Session, user_id: str) -> bool:
    """Whether somebody else may administer, and is let in."""
    query = (
        select(RoleGrant.user_id)
        .join(User, User.user_id == RoleGrant.user_id)
        .where(RoleGrant.role == Role.ADMIN.value, RoleGrant.user_id != user_id, User.disabled_at.is_(None))
    )
    return session.scalars(query).first() is not None


def roles_of(session: Session, user_id: str) -> frozenset[Role]:
    """What was granted to a user."""
    return frozenset(Role(row) for row in session.scalars(select(RoleGrant.role).where(RoleGrant.user_id == user_id)))


def user_view(session: Session, user: User) -> UserView:
    """A user as others see it."""
    return UserView(
        user_id=user.user_id,
        name=user.name,
        roles=tuple(sorted(roles_of(session, user.user_id))),
        created_at=user.created_at,
        disabled_at=user.disabled_at,
    )
