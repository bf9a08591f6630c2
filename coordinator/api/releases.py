"""/releases: list, show, review, sign, withdraw, download."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import SecretStr

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.api.idempotent import IdempotentRoute
from coordinator.api.paging import Paging
from coordinator.services.permissions import Action, Principal
from coordinator.services.reauthenticate import Shown
from coordinator.services.release_adapter import open_candidate_archive, open_release_archive, withdraw_release
from coordinator.services.show_releases import list_releases, show_release
from coordinator.services.sign_release import SignatureRequest, sign_release
from fl_protocol.signing.keys import spki_fingerprint

router = APIRouter(prefix="/releases", tags=["releases"], route_class=IdempotentRoute)


@router.get("")
def get_releases(
    api: Api,
    page: Paging,
    _: Annotated[Principal, Depends(allowed(Action.READ_RELEASES))],
    run_id: Annotated[str | None, Query(max_length=64)] = None,
) -> schemas.ListAnswer[schemas.Release]:
    """All releases, or those of one run."""
    return schemas.ListAnswer[schemas.Release].model_validate(list_releases(api, page, run_id=run_id))


@router.get("/keys")
def get_keys(api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_RELEASES))]) -> schemas.Keys:
    """The public keys that releases, receipts and checkpoints are verified with."""
    return schemas.Keys(
        release_signing_spki=base64.b64encode(api.release_signer.spki_der).decode(),
        release_signing_key_sha256=spki_fingerprint(api.release_signer.spki_der),
        coordinator_signing_spki=base64.b64encode(api.signer.spki_der).decode(),
        coordinator_signing_key_sha256=spki_fingerprint(api.signer.spki_der),
    )


@router.get("/{release_id}")
def get_release(
    release_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_RELEASES))]
) -> schemas.Release:
    """One release with its manifest."""
    return schemas.Release.model_validate(show_release(api, release_id))


@router.post("/{release_id}:approve")
def post_approval(
    release_id: str,
    request: schemas.ApproveReleaseRequest,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.APPROVE_RELEASE))],
) -> schemas.Release:
    """Sign a candidate, re-authenticated; the second person's signature, in the other role, publishes it."""
    said = SignatureRequest(meaning=request.meaning, manifest_sha256=request.manifest_sha256, role=request.role)
    shown = Shown(passphrase=_secret(request.passphrase), fresh_token=_secret(request.fresh_token))
    view = sign_release(api, release_id=release_id, request=said, signer=user, shown=shown)
    return schemas.Release.model_validate(view)


@router.post("/{release_id}:withdraw")
def post_withdrawal(
    release_id: str,
    request: schemas.ReasonRequest,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.WITHDRAW_RELEASE))],
) -> schemas.Release:
    """Take a release back; what was downloaded is beyond reach, and the record says so."""
    view = withdraw_release(api, release_id=release_id, reason=request.reason, actor=user.actor)
    return schemas.Release.model_validate(view)


@router.get(
    "/{release_id}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "the release folder"}},
)
def download_release(
    release_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.DOWNLOAD_RELEASE))]
) -> StreamingResponse:
    """The folder of a published release, as a zip file."""
    return _as_zip(open_release_archive(api, release_id), name=release_id)


@router.get(
    "/{release_id}/candidate",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "the candidate's folder"}},
)
def download_candidate(
    release_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.REVIEW_RELEASE))]
) -> StreamingResponse:
    """The folder of a release that is not published yet, for those who sign it or look over their shoulder."""
    return _as_zip(open_candidate_archive(api, release_id), name=f"{release_id}-candidate")


def _as_zip(archive: Iterator[bytes], *, name: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(archive, media_type="application/zip", headers=headers)


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
