"""/runs/{id}/events: a run as it goes, as server-sent events.

Each connection begins with the whole present state and then sends what changed, so that nothing need be resumed: a
client that lost its connection connects again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed, refusal_now
from coordinator.services.permissions import Action, Principal
from coordinator.services.resources import Resources
from coordinator.services.show_rounds import list_rounds
from coordinator.services.show_runs import show_run

router = APIRouter(prefix="/runs/{run_id}", tags=["runs"])

POLL_S = 0.5
KEEP_ALIVE_S = 15.0
_END_STATES = frozenset({"CANCELLED", "FAILED"})


@dataclass(slots=True)
class _Sent:
    """What one connection has been told, as digests."""

    run: str = ""
    rounds: dict[tuple[int, int], str] = field(default_factory=dict)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "events `run`, `round`, `end`, `refused`"}},
)
async def watch_run(
    run_id: str, request: Request, api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))]
) -> StreamingResponse:
    """The run and its rounds now, and again whenever they change, until the run has ended."""
    # Asked once before the answer begins, so that an unknown run is a problem document and not a broken stream.
    await asyncio.to_thread(show_run, api, run_id)
    stream = _events(api, run_id, request)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _events(resources: Resources, run_id: str, request: Request) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    sent = _Sent()
    last_at = loop.time()
    while not await request.is_disconnected():
        refusal = await asyncio.to_thread(refusal_now, request, Action.READ_RUNS)
        if refusal is not None:
            # Its token was revoked or has ended, or its role was taken: what follows is not for this reader.
            yield _event("refused", json.dumps({"code": refusal.code}))
            return
        changes, end_state = await asyncio.to_thread(_changes, resources, run_id, sent)
        for change in changes:
            yield change
        if end_state is not None:
            yield _event("end", f'{{"state":"{end_state}"}}')
            return
        now = loop.time()
        if changes:
            last_at = now
        elif now - last_at >= KEEP_ALIVE_S:
            last_at = now
            yield b": keep-alive\n\n"
        await asyncio.sleep(POLL_S)


def _changes(resources: Resources, run_id: str, sent: _Sent) -> tuple[list[bytes], str | None]:
    """The events that this connection has not been told, and the run's state once nothing more will come."""
    changes: list[bytes] = []
    # Rounds first: what is told of the run's end is never ahead of its rounds.
    run = schemas.Run.model_validate(show_run(resources, run_id))
    for view in list_rounds(resources, run_id):
        text, digest = _rendered(schemas.Round.model_validate(view))
        key = (view.round_index, view.round_attempt)
        if sent.rounds.get(key) != digest:
            sent.rounds[key] = digest
            changes.append(_event("round", text))
    text, digest = _rendered(run)
    if sent.run != digest:
        sent.run = digest
        changes.append(_event("run", text))
    is_over = run.state in _END_STATES or (run.state == "COMPLETED" and bool(run.releases))
    return changes, run.state if is_over else None


def _rendered(model: BaseModel) -> tuple[str, str]:
    text = model.model_dump_json()
    return text, hashlib.sha256(text.encode()).hexdigest()


def _event(kind: str, data: str) -> bytes:
    return f"event: {kind}\ndata: {data}\n\n".encode()
