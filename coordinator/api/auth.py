"""Who asks, and what they may: bearer tokens, and the table of ``coordinator.services.permissions``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from coordinator.api.rate_limits import RateLimits
from coordinator.errors import CoordinatorError
from coordinator.oidc.rules import IdentityProviderUnavailableError
from coordinator.services.identify_bearer import identify_bearer
from coordinator.services.permissions import Action, Principal, require
from coordinator.services.refusals import (
    AccessRefusedError,
    RoleInsufficientError,
    ScopeInsufficientError,
    TokenMissingError,
)
from coordinator.services.resources import Resources

_bearer = HTTPBearer(auto_error=False, description="A token of POST /api/v1/tokens, or of the identity provider.")


def resources_of(request: Request) -> Resources:
    """What the composition root gave to this application."""
    return cast("Resources", request.app.state.resources)


def principal_of(request: Request) -> Principal:
    """Who asks: found and counted once a request, however often it is asked here.

    Raises:
        AccessRefusedError: nobody who is known.
        IdentityProviderUnavailableError: it is not known whether somebody is.
        RateLimitedError: too often, or from an address that failed too often.
    """
    found = getattr(request.state, "principal", None)
    if isinstance(found, Principal):
        return found
    limits = cast("RateLimits", request.app.state.rate_limits)
    authorization = request.headers.get("authorization")
    address = "" if request.client is None else request.client.host
    credential = hashlib.sha256((authorization or "").encode()).digest()
    limits.before_identification(address, credential=credential)
    try:
        principal = _principal_from_header(resources_of(request), authorization)
    except AccessRefusedError:
        limits.note_failure(address, credential=credential)
        raise
    # A token is counted, and not a person's tokens together: a program that runs wild does not shut its owner out.
    limits.after_identification(principal.token_id, credential=credential)
    request.state.principal = principal
    return principal


def _principal_from_header(resources: Resources, authorization: str | None) -> Principal:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenMissingError("send the header `Authorization: Bearer wrt_...`")
    return identify_bearer(resources, token.strip())


def refusal_now(request: Request, action: Action) -> CoordinatorError | None:
    """Why a request that was let in would be refused now: for answers that last. It is not counted again.

    None too where nobody can say: what was allowed goes on while the identity provider is away.
    """
    try:
        principal = _principal_from_header(resources_of(request), request.headers.get("authorization"))
        require(principal, action)
    except (AccessRefusedError, RoleInsufficientError, ScopeInsufficientError) as refusal:
        return refusal
    except IdentityProviderUnavailableError:
        return None
    return None


Api = Annotated[Resources, Depends(resources_of)]


_ACTION_OF: dict[Callable[..., object], Action] = {}


def allowed(action: Action) -> Callable[..., Principal]:
    """A dependency: the user behind the token, once the table permits ``action``.

    The dependency raises what ``principal_of`` raises, RoleInsufficientError or ScopeInsufficientError.
    """

    def authorise(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        del credentials  # declared for the OpenAPI document; the header is read by one function only
        principal = principal_of(request)
        require(principal, action)
        return principal

    _ACTION_OF[authorise] = action
    return authorise


def action_of(dependency: Callable[..., object] | None) -> Action | None:
    """The action that a dependency guards; None for a dependency of another kind."""
    return None if dependency is None else _ACTION_OF.get(dependency)
