"""/me, /users and /tokens: who may ask for what."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.api.idempotent import SECRET_ANSWER, IdempotentRoute
from coordinator.api.paging import Paging
from coordinator.services.permissions import Action, Principal, is_permitted, require
from coordinator.services.signing_passphrases import reset_passphrase, set_passphrase
from coordinator.services.tokens import TokenRequest, create_token, list_tokens, revoke_token
from coordinator.services.user_standing import disable_user, enable_user
from coordinator.services.users import add_user, grant_role, list_users, revoke_role

router = APIRouter(tags=["users"], route_class=IdempotentRoute)


class TokenScope(StrEnum):
    """Whose tokens are listed."""

    ONE = "one"
    ALL = "all"


Admin = Annotated[Principal, Depends(allowed(Action.MANAGE_USERS))]
Anybody = Annotated[Principal, Depends(allowed(Action.OWN_TOKENS))]


@router.get("/me")
def get_me(user: Annotated[Principal, Depends(allowed(Action.READ_ME))]) -> schemas.Me:
    """Who the token belongs to."""
    return schemas.Me(
        user_id=user.user_id,
        name=user.name,
        roles=sorted(user.roles),
        token_id=user.token_id,
        scopes=None if user.scopes is None else list(user.scopes),
    )


@router.post("/me/passphrase")
def post_passphrase(
    request: schemas.SetPassphraseRequest,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.OWN_PASSPHRASE))],
) -> schemas.PassphraseAnswer:
    """Set one's own signing passphrase; where there is one, it is sent too."""
    current = None if request.current_passphrase is None else request.current_passphrase.get_secret_value()
    standing = set_passphrase(api, principal=user, passphrase=request.passphrase.get_secret_value(), current=current)
    return schemas.PassphraseAnswer.model_validate(standing)


@router.get("/users")
def get_users(
    api: Api, page: Paging, _: Annotated[Principal, Depends(allowed(Action.READ_USERS))]
) -> schemas.ListAnswer[schemas.User]:
    """All users."""
    return schemas.ListAnswer[schemas.User].model_validate(list_users(api, page))


@router.post("/users", status_code=201)
def post_user(request: schemas.AddUserRequest, api: Api, user: Admin) -> schemas.User:
    """A new user."""
    return schemas.User.model_validate(add_user(api, name=request.name, roles=request.roles, actor=user.actor))


@router.post("/users/{name_or_id}:grant")
def post_grant(name_or_id: str, request: schemas.RoleRequest, api: Api, user: Admin) -> schemas.User:
    """Give a role."""
    return schemas.User.model_validate(grant_role(api, user=name_or_id, role=request.role, actor=user.actor))


@router.post("/users/{name_or_id}:revoke")
def post_role_revocation(name_or_id: str, request: schemas.RoleRequest, api: Api, user: Admin) -> schemas.User:
    """Take a role."""
    return schemas.User.model_validate(revoke_role(api, user=name_or_id, role=request.role, actor=user.actor))


@router.post("/users/{name_or_id}:disable")
def post_user_disabled(name_or_id: str, api: Api, user: Admin) -> schemas.User:
    """Shut a person out, whatever tokens they hold."""
    return schemas.User.model_validate(disable_user(api, user=name_or_id, actor=user.actor))


@router.post("/users/{name_or_id}:enable")
def post_user_enabled(name_or_id: str, api: Api, user: Admin) -> schemas.User:
    """Let a person in again."""
    return schemas.User.model_validate(enable_user(api, user=name_or_id, actor=user.actor))


@router.post("/users/{name_or_id}:reset-passphrase")
def post_passphrase_reset(name_or_id: str, api: Api, user: Admin) -> schemas.Done:
    """Forget a person's signing passphrase, so that they may set another."""
    reset_passphrase(api, user=name_or_id, actor=user.actor)
    return schemas.Done()


@router.get("/tokens")
def get_tokens(
    api: Api,
    page: Paging,
    user: Anybody,
    user_id: Annotated[str | None, Query(max_length=64)] = None,
    scope: TokenScope = TokenScope.ONE,
) -> schemas.ListAnswer[schemas.Token]:
    """One's own tokens; an admin may ask for another user's, or for all."""
    if scope is TokenScope.ALL or user_id not in (None, user.user_id):
        require(user, Action.MANAGE_TOKENS)
    owner = None if scope is TokenScope.ALL else (user_id or user.user_id)
    return schemas.ListAnswer[schemas.Token].model_validate(list_tokens(api, page, user_id=owner))


@router.post("/tokens", status_code=201, openapi_extra={SECRET_ANSWER: True})
def post_token(request: schemas.CreateTokenRequest, api: Api, user: Anybody) -> schemas.NewToken:
    """A new token, shown this once; never wider than the token that asks."""
    owner = request.user_id or user.user_id
    if owner != user.user_id:
        require(user, Action.MANAGE_TOKENS)
    asked = TokenRequest(user=owner, label=request.label, lifetime_s=request.lifetime_s, scopes=request.scopes)
    made = create_token(api, asked, actor=user.actor, maker=user)
    return schemas.NewToken(
        token=made.value,
        token_id=made.view.token_id,
        user_id=made.view.user_id,
        label=made.view.label,
        scopes=None if made.view.scopes is None else list(made.view.scopes),
        expires_at=made.view.expires_at,
    )


@router.post("/tokens/{token_id}:revoke")
def post_token_revocation(token_id: str, api: Api, user: Anybody) -> schemas.Token:
    """End a token; an admin may end anybody's."""
    owner = None if is_permitted(user, Action.MANAGE_TOKENS) else user.user_id
    return schemas.Token.model_validate(revoke_token(api, token_id=token_id, actor=user.actor, owner=owner))
