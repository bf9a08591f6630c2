"""A site takes a round on, or says that it will not or cannot."""

from __future__ import annotations

import re
from enum import StrEnum

from sqlalchemy.orm import Session

from coordinator.errors import InvalidMessageError, LateError
from coordinator.rounds.events import SiteReported
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.participation_machine import ParticipationEvent
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

_REASON = re.compile(r"[a-z0-9][a-z0-9._:-]{0,99}")


class DeclineKind(StrEnum):
    """Whether a site would not, or could not."""

    REFUSED = "refused"
    FAILED = "failed"


async def accept_round(ctx: EngineContext, *, site_id: SiteId, round: RoundRef) -> None:  # noqa: A002 # the glossary's word
    """Note that the site trains.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: it may not.
        LateError: training is over.
        WrongPhaseError: it declined before.
    """
    now = ctx.now()

    def write(session: Session) -> None:
        round_row, row = require_participation(session, site_id, round)
        if round_row.state != RoundState.TRAINING.value:
            raise LateError("training is over in this round", run_id=round.run_id, state=round_row.state)
        if move_participation(row, ParticipationEvent.ACCEPTED, now=now):
            store_event(session, SiteReported(site_id=site_id), round, now=now)
            audit_participation(session, row, actor=site_actor(site_id), now=now)

    # The driver is not woken: it waits for what the site will have trained.
    await ctx.db.run_tx_async("accept-round", write)


async def decline_round(
    ctx: EngineContext,
    *,
    site_id: SiteId,
    round: RoundRef,  # noqa: A002 # the glossary's word
    kind: DeclineKind,
    reason: str,
) -> None:
    """Note that the site takes no part in the round, or no further part.

    Args:
        ctx: the engine.
        site_id: who says so.
        round: the round.
        kind: would not, or could not.
        reason: a rule's name or a failure's code; nothing that was computed from data.

    Raises:
        SiteNotActiveError, NotFoundError, NotInCohortError: it may not.
        InvalidMessageError: the reason is not a code.
        LateError: the round has ended.
        WrongPhaseError: the site's update is in the sum already.
    """
    if _REASON.fullmatch(reason) is None:
        raise InvalidMessageError("a reason is a code of lower-case letters, digits, dots, colons and hyphens")
    event = ParticipationEvent.REFUSED if kind is DeclineKind.REFUSED else ParticipationEvent.FAILED
    now = ctx.now()

    def write(session: Session) -> None:
        round_row, row = require_participation(session, site_id, round)
        if RoundState(round_row.state).is_final:
            raise LateError("the round has ended", run_id=round.run_id, state=round_row.state)
        if move_participation(row, event, now=now, reason=reason):
            store_event(session, SiteReported(site_id=site_id), round, now=now)
            audit_participation(session, row, actor=site_actor(site_id), now=now)

    await ctx.db.run_tx_async("decline-round", write)
    ctx.wakeups.wake_driver()
