"""Who sent a bearer token: one of ours, or one of the configured identity provider's.

A person of the provider's is written down as a user when first seen, under the name that the audit log uses. Their
roles are not: they are those of the token, each time.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import User
from coordinator.oidc.provider import IdentityProvider
from coordinator.oidc.rules import Subject, TokenFault, TokenRefused
from coordinator.oidc.verify_token import is_like_a_token_of_an_issuer
from coordinator.services.permissions import Principal, Role
from coordinator.services.refusals import (
    ExternalTokenRefusedError,
    RoleInsufficientError,
    TokenExpiredError,
    TokenUnknownError,
)
from coordinator.services.resources import Resources
from coordinator.services.tokens import identify_token
from coordinator.services.users import EXTERNAL_USER_ID
from fl_protocol.audit.events import AuditKind


def identify_bearer(resources: Resources, token: str) -> Principal:
    """Who holds this token.

    Raises:
        TokenUnknownError, TokenExpiredError, ExternalTokenRefusedError: nobody who is known, or not any more.
        RoleInsufficientError: the provider's token names no role of ours.
        IdentityProviderUnavailableError: the provider is needed and does not answer.
    """
    provider = resources.identity_provider
    if provider is None or not is_like_a_token_of_an_issuer(token):
        return identify_token(resources, token)
    return _external(resources, provider, token)


def _external(resources: Resources, provider: IdentityProvider, token: str) -> Principal:
    now = resources.now()
    judged = provider.judge(token, now=now)
    if isinstance(judged, TokenRefused):
        if judged.fault is TokenFault.EXPIRED:
            raise TokenExpiredError("this token of the identity provider has expired; get another")
        raise ExternalTokenRefusedError("this token of the identity provider is refused", reason=judged.fault.value)
    roles = frozenset(Role(role) for role in judged.roles)
    if not roles:
        raise RoleInsufficientError("the identity provider gives you no role here", held="none", person=judged.name)
    _see(resources, judged, now=now)
    user_id = _user_id(judged)
    return Principal(user_id=user_id, name=judged.name, roles=roles, token_id=user_id, is_external=True)


def _user_id(subject: Subject) -> str:
    digest = hashlib.sha256(b"\0".join((subject.issuer.encode(), subject.sub.encode()))).hexdigest()
    return f"{EXTERNAL_USER_ID}{digest[:40]}"


def _see(resources: Resources, subject: Subject, *, now: datetime) -> None:
    user_id = _user_id(subject)

    def is_disabled(session: Session) -> bool | None:
        user = session.get(User, user_id)
        return None if user is None else user.disabled_at is not None

    def write(session: Session) -> None:
        if session.get(User, user_id) is None:
            session.add(User(user_id=user_id, name=subject.name, created_at=now, disabled_at=None))
            session.flush()
            facts = {"user_id": user_id, "name": subject.name, "issuer": subject.issuer}
            append_audit(session, AuditKind.USER_ADDED, actor=subject.name, facts=facts, now=now)

    disabled = resources.db.read("find_external_user", is_disabled)
    if disabled is None:
        try:
            resources.db.run_tx("see_external_user", write)
        except IntegrityError:
            # Another request of the same person was first.
            disabled = resources.db.read("find_external_user", is_disabled)
    if disabled:
        raise TokenUnknownError("this person is not let in any more")
