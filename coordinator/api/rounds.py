"""/runs/{id}/rounds and /runs/{id}/metrics: how far a run is, and what its sums say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from coordinator.api import schemas
from coordinator.api.auth import Api, allowed
from coordinator.services.permissions import Action, Principal
from coordinator.services.show_rounds import list_rounds, show_metrics, show_round

router = APIRouter(prefix="/runs/{run_id}", tags=["rounds"])


class Attempts(StrEnum):
    """Which attempts at a round are listed."""

    LATEST = "latest"
    ALL = "all"


@router.get("/rounds")
def get_rounds(
    run_id: str,
    api: Api,
    _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))],
    attempts: Attempts = Attempts.LATEST,
) -> schemas.ListAnswer[schemas.Round]:
    """The rounds of a run, in order: a run has few enough for one page."""
    rounds = list_rounds(api, run_id, is_every_attempt=attempts is Attempts.ALL)
    return schemas.ListAnswer[schemas.Round](items=[schemas.Round.model_validate(view) for view in rounds])


@router.get("/rounds/{round_index}")
def get_round(
    run_id: str,
    round_index: Annotated[int, Path(ge=0)],
    api: Api,
    _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))],
    attempt: Annotated[int | None, Query(ge=0)] = None,
) -> schemas.Round:
    """One round, by default its latest attempt."""
    return schemas.Round.model_validate(show_round(api, run_id, round_index, attempt=attempt))


@router.get("/metrics")
def get_metrics(run_id: str, api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_RUNS))]) -> schemas.Metrics:
    """What the committed rounds' sums say."""
    return schemas.Metrics.model_validate(show_metrics(api, run_id))
