"""Who asks, and what they may: bearer tokens, and the table of ``coordinator.services.permissions``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from coordinator.services.permissions import Action, Principal, require
from coordinator.services.refusals import TokenMissingError
from coordinator.services.resources import Resources
from coordinator.services.tokens import identify_token

_bearer = HTTPBearer(auto_error=False, description="A token made by `init`, or by POST /api/v1/tokens.")


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


_ACTION_OF: dict[Callable[..., object], Action] = {}


def allowed(action: Action) -> Callable[..., Principal]:
    """A dependency: the user behind the token, once the table permits ``action``.

    The dependency raises TokenMissingError, TokenUnknownError, TokenExpiredError, RoleInsufficientError or
    ScopeInsufficientError.
    """

    def authorise(
        request: Request,
        resources: Api,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        del credentials  # declared for the OpenAPI document; the header is read by one function only
        principal = principal_from_header(resources, request.headers.get("authorization"))
        require(principal, action)
        return principal

    _ACTION_OF[authorise] = action
    return authorise


def action_of(dependency: Callable[..., object] | None) -> Action | None:
    """The action that a dependency guards; None for a dependency of another kind."""
    return None if dependency is None else _ACTION_OF.get(dependency)
