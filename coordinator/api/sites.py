"""/sites: list, show, invite, suspend, resume, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.api.idempotent import SECRET_ANSWER, IdempotentRoute
from coordinator.api.paging import Paging
from coordinator.services.change_site_state import SiteChange, change_site_state
from coordinator.services.invite_site import invite_site
from coordinator.services.permissions import Action, Principal
from coordinator.services.show_sites import list_sites, show_site

router = APIRouter(prefix="/sites", tags=["sites"], route_class=IdempotentRoute)


@router.get("")
def get_sites(
    api: Api, page: Paging, _: Annotated[Principal, Depends(allowed(Action.READ_SITES))]
) -> schemas.ListAnswer[schemas.Site]:
    """All sites, by name."""
    return schemas.ListAnswer[schemas.Site].model_validate(list_sites(api, page))


@router.post("", status_code=201, openapi_extra={SECRET_ANSWER: True})
def post_site(
    request: schemas.InviteRequest, api: Api, user: Annotated[Principal, Depends(allowed(Action.INVITE_SITE))]
) -> schemas.InviteAnswer:
    """Invite a site: a one-time enrolment code, shown this once."""
    return schemas.InviteAnswer.model_validate(invite_site(api, name=request.name, actor=user.actor))


@router.get("/{site_id}")
def get_site(site_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_SITES))]) -> schemas.Site:
    """One site."""
    return schemas.Site.model_validate(show_site(api, site_id))


@router.post("/{site_id}:suspend")
def suspend_site(
    site_id: str,
    request: schemas.ReasonRequest,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.SUSPEND_SITE))],
) -> schemas.Site:
    """Keep a site out until it is resumed."""
    view = change_site_state(api, site_id=site_id, change=SiteChange.SUSPEND, reason=request.reason, actor=user.actor)
    return schemas.Site.model_validate(view)


@router.post("/{site_id}:resume")
def resume_site(
    site_id: str,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.RESUME_SITE))],
    request: Annotated[schemas.OptionalReasonRequest | None, Body()] = None,
) -> schemas.Site:
    """Let a suspended site take part again."""
    reason = None if request is None else request.reason
    view = change_site_state(api, site_id=site_id, change=SiteChange.RESUME, reason=reason, actor=user.actor)
    return schemas.Site.model_validate(view)


@router.post("/{site_id}:revoke")
def revoke_site(
    site_id: str,
    request: schemas.ReasonRequest,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.REVOKE_SITE))],
) -> schemas.Site:
    """End a site's part for ever; its certificates end with it."""
    view = change_site_state(api, site_id=site_id, change=SiteChange.REVOKE, reason=request.reason, actor=user.actor)
    return schemas.Site.model_validate(view)
