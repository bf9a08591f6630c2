"""A site says how far its training is: a word and two counters, nothing that was computed from data.

A new word or step is progress, which puts the site's deadline off; the same again is not.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy.orm import Session

from coordinator.db.rounds import is_anybody_training
from coordinator.errors import InvalidMessageError, LateError, WrongPhaseError
from coordinator.rounds.events import SiteReported
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.participation_machine import ParticipationEvent, ParticipationState
from coordinator.rounds.round_machine import RoundState
from coordinator.services.context import EngineContext
from coordinator.services.event_rows import store_event
from coordinator.services.round_access import (
    audit_participation,
    move_participation,
    require_participation,
    site_actor,
)
from fl_protocol.ids import SiteId

_MAX_STEPS = 1 << 32


class SiteActivity(StrEnum):
    """What a site does in training."""

    LOADING = "loading"
    EVALUATING = "evaluating"
    TRAINING = "training"


async def report_progress(
    ctx: EngineContext,
    *,
    site_id: SiteId,
    round: RoundRef,  # noqa: A002 # the glossary's word
    activity: SiteActivity,
    step: int,
    steps: int,
) -> None:
    """Show the site's progress in its participation.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: it may not.
        InvalidMessageError: the counters are none.
        LateError: training is over.
        WrongPhaseError: the site did not accept the round.
    """
    if not 0 <= step <= steps < _MAX_STEPS:
        raise InvalidMessageError("progress is 0 <= step <= steps", step=step, steps=steps)
    now = ctx.now()

    def write(session: Session) -> None:
        round_row, row = require_participation(session, site_id, round)
        if round_row.state != RoundState.TRAINING.value:
            raise LateError("training is over in this round", run_id=round.run_id, state=round_row.state)
        if row.state not in {ParticipationState.TRAINING.value, ParticipationState.READY.value}:
            raise WrongPhaseError("the site is not training in this round", site_id=site_id, state=row.state)
        if (row.activity, row.step, row.steps) != (activity.value, step, steps):
            # Only what is new is progress, and only progress is written.
            row.activity, row.step, row.steps = activity.value, step, steps
            row.updated_at = now

    await ctx.db.run_tx_async("report-progress", write)


async def report_ready(ctx: EngineContext, *, site_id: SiteId, round: RoundRef) -> None:  # noqa: A002 # as above
    """Note that the site has a payload.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: it may not.
        LateError: training is over, and this site was not ready.
        WrongPhaseError: the site did not accept the round, or left it.
    """
    now = ctx.now()

    def write(session: Session) -> bool:
        round_row, row = require_participation(session, site_id, round)
        is_training = round_row.state == RoundState.TRAINING.value
        if not is_training and not ParticipationState(row.state).can_exchange:
            raise LateError("training is over in this round", run_id=round.run_id, state=round_row.state)
        if move_participation(row, ParticipationEvent.REPORTED_READY, now=now):
            row.activity = None
            store_event(session, SiteReported(site_id=site_id), round, now=now)
            audit_participation(session, row, actor=site_actor(site_id), now=now)
        return not is_anybody_training(session, (round.run_id, round.round_index, round.round_attempt))

    if await ctx.db.run_tx_async("report-ready", write):
        ctx.wakeups.wake_driver()
