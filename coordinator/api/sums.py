"""/runs/{id}/rounds/{index}/sum: one sum with everything that it was made of, for an auditor who makes it again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response, StreamingResponse

from coordinator.api.auth import Api, allowed
from coordinator.services.permissions import Action, Principal
from coordinator.services.show_sum_record import OpenVector, open_masked_upload, open_sum, show_sum_record
from fl_protocol.ids import site_id_from_text

router = APIRouter(prefix="/runs/{run_id}/rounds/{round_index}/sum", tags=["sums"])

_BYTES = "application/octet-stream"
_RESPONSES: dict[int | str, dict[str, object]] = {200: {"content": {_BYTES: {}}, "description": "exact bytes"}}
Index = Annotated[int, Path(ge=0)]
Auditor = Annotated[Principal, Depends(allowed(Action.READ_SUMS))]


@router.get("/record", response_class=Response, responses=_RESPONSES)
def get_record(run_id: str, round_index: Index, api: Api, _: Auditor) -> Response:
    """Every message of the exchange (docs/protocol/secagg.md, section 10)."""
    return Response(show_sum_record(api, run_id, round_index), media_type=_BYTES)


@router.get("/vector", response_class=StreamingResponse, responses=_RESPONSES)
def get_vector(run_id: str, round_index: Index, api: Api, _: Auditor) -> StreamingResponse:
    """The sum, as a ring vector's wire image."""
    return _streamed(open_sum(api, run_id, round_index))


@router.get("/uploads/{site_id}", response_class=StreamingResponse, responses=_RESPONSES)
def get_upload(run_id: str, round_index: Index, site_id: str, api: Api, _: Auditor) -> StreamingResponse:
    """The masked vector of one survivor, as it was uploaded."""
    return _streamed(open_masked_upload(api, run_id, round_index, site_id=site_id_from_text(site_id)))


def _streamed(vector: OpenVector) -> StreamingResponse:
    return StreamingResponse(vector.parts, media_type=_BYTES, headers={"Content-Length": str(vector.n_bytes)})
