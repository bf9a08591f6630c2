"""/audit: read the log, and take it away to verify it elsewhere."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.api.paging import Paging
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.export_audit import iter_audit_export, list_audit_events, list_checkpoints
from coordinator.services.permissions import Action, Principal

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("/events")
def get_events(
    api: Api,
    page: Paging,
    _: Annotated[Principal, Depends(allowed(Action.READ_AUDIT))],
    kind: Annotated[str | None, Query(max_length=64)] = None,
    after_seq: Annotated[int | None, Query(ge=-1)] = None,
) -> schemas.ListAnswer[schemas.AuditEvent]:
    """Events in the order of the log."""
    found = list_audit_events(api, page, kind=kind, after_seq=after_seq)
    return schemas.ListAnswer[schemas.AuditEvent].model_validate(found)


@router.get("/checkpoints")
def get_checkpoints(
    api: Api, page: Paging, _: Annotated[Principal, Depends(allowed(Action.READ_AUDIT))]
) -> schemas.ListAnswer[schemas.Checkpoint]:
    """Signed heads of the log."""
    return schemas.ListAnswer[schemas.Checkpoint].model_validate(list_checkpoints(api, page))


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "one JSON document a line"}},
)
def export_log(api: Api, _: Annotated[Principal, Depends(allowed(Action.EXPORT_AUDIT))]) -> StreamingResponse:
    """The whole log as lines of JSON, with a fresh checkpoint over all of it."""
    checkpoint_audit(api)
    return StreamingResponse(iter_audit_export(api), media_type="application/x-ndjson")
