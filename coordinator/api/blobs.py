"""/blobs: upload what a run begins with. A blob is named by its digest, so a repeated upload is the same upload."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.services.permissions import Action, Principal
from coordinator.services.put_blob import put_blob

router = APIRouter(prefix="/blobs", tags=["blobs"])


@router.put(
    "/{sha256}",
    status_code=201,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def put_blob_content(
    sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")],
    request: Request,
    api: Api,
    _: Annotated[Principal, Depends(allowed(Action.PUT_BLOB))],
) -> schemas.Blob:
    """Store the body, once its SHA-256 is known to be the one in the path."""
    # The body is spooled to disk by `put_blob` while it arrives; it is never whole in memory.
    stored = await put_blob(api, sha256=sha256, parts=request.stream())
    return schemas.Blob(sha256=stored.sha256, size=stored.n_bytes)
