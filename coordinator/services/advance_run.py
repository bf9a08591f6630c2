"""One turn of a run's machines: events in order, then time; states, outbox and audit in one transaction.

The only writer of round and exchange states. It works by level where it can: a suspended site, a cancelled run, a
quorum of approvals are seen in the rows, so that nobody has to remember to send an event. What is done between two
rounds is in ``plan_round``, what while one is open in ``drive_round``.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.audit import write_checkpoint
from coordinator.db.models import Run
from coordinator.db.outbox import consume_events, pending_events
from coordinator.db.rounds import open_round as find_open_round
from coordinator.errors import NotFoundError
from coordinator.services.context import EngineContext
from coordinator.services.drive_round import drive_round
from coordinator.services.event_rows import event_from_row
from coordinator.services.give_time_anew import give_time_anew
from coordinator.services.plan_round import plan_round
from coordinator.services.turn import Turn, TurnOutcome


def advance_run(
    ctx: EngineContext, session: Session, run_id: str, *, now: datetime, was_left_alone: bool = False
) -> TurnOutcome:
    """Read what happened and go as far as it leads.

    Args:
        ctx: the engine.
        session: the transaction's.
        run_id: which run.
        now: the present instant.
        was_left_alone: whether nobody drove the run for a while: nobody is silent who could not be heard.

    Returns:
        Whether anything changed, and whether it concerns anybody.

    Raises:
        NotFoundError: there is no such run.
        IllegalTransitionError: an event that the tables do not list; nothing is written.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("there is no such run", run_id=run_id)
    turn = Turn(ctx=ctx, session=session, run=run, now=now)
    rows = pending_events(session, run_id)
    round_row = find_open_round(session, run_id)
    if round_row is not None:
        if was_left_alone:
            give_time_anew(turn, round_row)
        drive_round(turn, round_row, [event_from_row(row) for row in rows])
    else:
        plan_round(turn)
    if rows:
        consume_events(session, rows, now=now)
        turn.is_changed = True
    outcome = turn.outcome
    turn.trail.write(session, now=now)
    if outcome is TurnOutcome.LEADS_ON:
        write_checkpoint(session, signer=ctx.signer, origin=ctx.origin, now=now)
    return outcome
