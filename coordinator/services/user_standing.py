"""Shut a person out, whole and at once, and let them in again: their roles and tokens stay as they are meanwhile."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.services.permissions import Role
from coordinator.services.refusals import StateConflictError
from coordinator.services.resources import Resources
from coordinator.services.users import UserView, find_user, has_another_admin, roles_of, user_view
from fl_protocol.audit.events import AuditKind


def disable_user(resources: Resources, *, user: str, actor: str) -> UserView:
    """Let nobody in by this person's tokens any more, an identity provider's included; again is once.

    Raises:
        NotFoundError: there is no such user.
        StateConflictError: nobody would be left to administer.
    """
    now = resources.now()

    def disable(session: Session) -> UserView:
        row = find_user(session, user)
        if row.disabled_at is None:
            if Role.ADMIN in roles_of(session, row.user_id) and not has_another_admin(session, row.user_id):
                raise StateConflictError("this is the last admin; make somebody else one first")
            row.disabled_at = now
            facts = {"user_id": row.user_id, "name": row.name}
            append_audit(session, AuditKind.USER_DISABLED, actor=actor, facts=facts, now=now)
        return user_view(session, row)

    return resources.db.run_tx("disable_user", disable)


def enable_user(resources: Resources, *, user: str, actor: str) -> UserView:
    """Let the person in again, with the roles and the tokens that still hold; again is once.

    Raises:
        NotFoundError: there is no such user.
    """
    now = resources.now()

    def enable(session: Session) -> UserView:
        row = find_user(session, user)
        if row.disabled_at is not None:
            row.disabled_at = None
            facts = {"user_id": row.user_id, "name": row.name}
            append_audit(session, AuditKind.USER_ENABLED, actor=actor, facts=facts, now=now)
        return user_view(session, row)

    return resources.db.run_tx("enable_user", enable)
