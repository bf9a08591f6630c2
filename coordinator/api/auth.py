"""Who asks, and what they may: bearer tokens, and one table from action to roles. What is not listed is denied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from coordinator.services.refusals import RoleInsufficientError, TokenMissingError
from coordinator.services.resources import Resources
from coordinator.services.users_and_tokens import Principal, Role, identify_token


class Action(StrEnum):
    """What can be done over REST."""

    READ = "read"
    READ_AUDIT = "audit:read"
    EXPORT_AUDIT = "audit:export"
    INVITE_SITE = "sites:invite"
    SUSPEND_SITE = "sites:suspend"
    RESUME_SITE = "sites:resume"
    REVOKE_SITE = "sites:revoke"
    PUT_BLOB = "blobs:put"
    CREATE_RUN = "runs:create"
    START_RUN = "runs:start"
    PAUSE_RUN = "runs:pause"
    RESUME_RUN = "runs:resume"
    CANCEL_RUN = "runs:cancel"
    APPROVE_RELEASE = "releases:approve"
    WITHDRAW_RELEASE = "releases:withdraw"
    DOWNLOAD_RELEASE = "releases:download"
    MANAGE_USERS = "users:manage"
    OWN_TOKENS = "tokens:own"
    MANAGE_TOKENS = "tokens:manage"


_EVERYBODY = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
_LEAD = frozenset({Role.ADMIN, Role.STUDY_LEAD})
_LEAD_OR_PRIVACY = _LEAD | {Role.PRIVACY_OFFICER}
_WATCHERS = frozenset({Role.ADMIN, Role.PRIVACY_OFFICER, Role.AUDITOR})

ROLES: Mapping[Action, frozenset[Role]] = {
    Action.READ: _EVERYBODY,
    Action.READ_AUDIT: _WATCHERS,
    Action.EXPORT_AUDIT: _WATCHERS,
    Action.INVITE_SITE: _ADMIN,
    Action.SUSPEND_SITE: _ADMIN | {Role.PRIVACY_OFFICER},
    Action.RESUME_SITE: _ADMIN,
    Action.REVOKE_SITE: _ADMIN,
    Action.PUT_BLOB: _LEAD,
    Action.CREATE_RUN: _LEAD,
    Action.START_RUN: _LEAD,
    Action.PAUSE_RUN: _LEAD_OR_PRIVACY,
    Action.RESUME_RUN: _LEAD,
    Action.CANCEL_RUN: _LEAD,
    Action.APPROVE_RELEASE: _LEAD,
    Action.WITHDRAW_RELEASE: _LEAD_OR_PRIVACY,
    Action.DOWNLOAD_RELEASE: _EVERYBODY,
    Action.MANAGE_USERS: _ADMIN,
    Action.OWN_TOKENS: _EVERYBODY,
    Action.MANAGE_TOKENS: _ADMIN,
}

_bearer = HTTPBearer(auto_error=False, description="A token made by `init`, or by POST /api/v1/tokens.")


def is_permitted(principal: Principal, action: Action) -> bool:
    """Whether one of the user's roles permits the action."""
    return bool(principal.roles & ROLES.get(action, frozenset()))


def resources_of(request: Request) -> Resources:
    """What the composition root gave to this application."""
    return cast("Resources", request.app.state.resources)


def principal_from_header(resources: Resources, authorization: str | None) -> Principal:
    """Who holds the token in an ``Authorization`` header.

    Raises:
        TokenMissingError, TokenUnknownError, TokenExpiredError: nobody does.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenMissingError("send the header `Authorization: Bearer wrt_...`")
    return identify_token(resources, token.strip())


Api = Annotated[Resources, Depends(resources_of)]


def allowed(action: Action) -> Callable[..., Principal]:
    """A dependency: the user behind the token, once the table permits ``action``.

    The dependency raises TokenMissingError, TokenUnknownError, TokenExpiredError or RoleInsufficientError.
    """

    def authorise(
        request: Request,
        resources: Api,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        del credentials  # declared for the OpenAPI document; the header is read by one function only
        principal = principal_from_header(resources, request.headers.get("authorization"))
        if not is_permitted(principal, action):
            raise RoleInsufficientError(
                "your roles do not permit this",
                action=action.value,
                needed=" or ".join(sorted(ROLES.get(action, frozenset()))),
                held=", ".join(sorted(principal.roles)) or "none",
            )
        return principal

    return authorise
