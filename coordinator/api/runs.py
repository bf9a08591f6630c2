"""/runs: create, list, show, start, pause, resume, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.api.idempotent import IdempotentRoute
from coordinator.api.paging import Paging
from coordinator.services.change_run_state import RunChange, change_run_state
from coordinator.services.create_run import RunProposal, create_run
from coordinator.services.permissions import Action, Principal
from coordinator.services.show_runs import list_runs, show_run

router = APIRouter(prefix="/runs", tags=["runs"], route_class=IdempotentRoute)

MaybeReason = Annotated[schemas.OptionalReasonRequest | None, Body()]


@router.get("")
def get_runs(
    api: Api,
    page: Paging,
    _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))],
    state: Annotated[str | None, Query(max_length=32)] = None,
) -> schemas.ListAnswer[schemas.Run]:
    """All runs, or those in one state."""
    return schemas.ListAnswer[schemas.Run].model_validate(list_runs(api, page, state=state))


@router.post("", status_code=201)
def post_run(
    request: schemas.CreateRunRequest, api: Api, user: Annotated[Principal, Depends(allowed(Action.CREATE_RUN))]
) -> schemas.Run:
    """Propose a run. A wrong RunSpec is refused whole, every fault listed with its path."""
    proposal = RunProposal(
        run_spec=request.run_spec,
        layout_blob_sha256=request.layout_blob_sha256,
        initial_blob_sha256=request.initial_blob_sha256,
    )
    return schemas.Run.model_validate(create_run(api, proposal, actor=user.actor))


@router.get("/{run_id}")
def get_run(run_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))]) -> schemas.Run:
    """One run."""
    return schemas.Run.model_validate(show_run(api, run_id))


@router.post("/{run_id}:start")
def start_run(
    run_id: str,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.START_RUN))],
    request: MaybeReason = None,
) -> schemas.Run:
    """Ask the sites for their word, as another person than its creator; rounds begin once a quorum has approved."""
    return _change(api, run_id, RunChange.START, user=user, request=request)


@router.post("/{run_id}:pause")
def pause_run(
    run_id: str,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.PAUSE_RUN))],
    request: MaybeReason = None,
) -> schemas.Run:
    """Open no further round; the open one goes to its end."""
    return _change(api, run_id, RunChange.PAUSE, user=user, request=request)


@router.post("/{run_id}:resume")
def resume_run(
    run_id: str,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.RESUME_RUN))],
    request: MaybeReason = None,
) -> schemas.Run:
    """Open rounds again."""
    return _change(api, run_id, RunChange.RESUME, user=user, request=request)


@router.post("/{run_id}:cancel")
def cancel_run(
    run_id: str,
    api: Api,
    user: Annotated[Principal, Depends(allowed(Action.CANCEL_RUN))],
    request: MaybeReason = None,
) -> schemas.Run:
    """End the run; the open round is aborted."""
    return _change(api, run_id, RunChange.CANCEL, user=user, request=request)


def _change(
    api: Api, run_id: str, change: RunChange, *, user: Principal, request: schemas.OptionalReasonRequest | None
) -> schemas.Run:
    reason = None if request is None else request.reason
    return schemas.Run.model_validate(
        change_run_state(api, run_id=run_id, change=change, actor=user.actor, reason=reason)
    )
