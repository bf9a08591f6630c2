"""Start, pause, resume and cancel a run: one step of its machine, one audit event. The driver does the rest."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.errors import IllegalTransitionError
from coordinator.rounds.run_machine import RunEvent, RunState, step_run
from coordinator.services.refusals import FourEyesError, RequestInvalidError, StateConflictError
from coordinator.services.resources import Resources
from coordinator.services.show_runs import RunView, find_run, run_view
from fl_protocol.audit.events import AuditKind


class RunChange(StrEnum):
    """What people may do to a run."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


_EVENTS: Mapping[RunChange, RunEvent] = {
    RunChange.START: RunEvent.STARTED,
    RunChange.PAUSE: RunEvent.PAUSED,
    RunChange.RESUME: RunEvent.RESUMED,
    RunChange.CANCEL: RunEvent.CANCELLED,
}
_KINDS: Mapping[RunChange, AuditKind] = {
    RunChange.START: AuditKind.RUN_STARTED,
    RunChange.PAUSE: AuditKind.RUN_PAUSED,
    RunChange.RESUME: AuditKind.RUN_RESUMED,
    RunChange.CANCEL: AuditKind.RUN_CANCELLED,
}


def change_run_state(
    resources: Resources, *, run_id: str, change: RunChange, actor: str, reason: str | None = None
) -> RunView:
    """Step the run's machine.

    Raises:
        NotFoundError: there is no such run.
        RequestInvalidError: the reason has more than 500 characters.
        StateConflictError: the run's state does not permit it.
        FourEyesError: whoever starts the run created it; the attempt is recorded with both names.
    """
    now = resources.now()
    said = (reason or "").strip() or None
    if said is not None and len(said) > 500:
        raise RequestInvalidError("a reason has at most 500 characters")

    def apply(session: Session) -> RunView | None:
        run = find_run(session, run_id)
        state = RunState(run.state)
        try:
            following = step_run(state, _EVENTS[change])
        except IllegalTransitionError as error:
            raise StateConflictError(
                f"a run that is {state.value} cannot be changed by {change.value}", run_id=run_id, state=state.value
            ) from error
        facts: dict[str, str | None] = {"run_id": run_id}
        if change is RunChange.START:
            facts["created_by"] = run.created_by
            if resources.is_start_by_another and run.created_by == actor:
                facts["code"] = FourEyesError.code
                append_audit(session, AuditKind.CALL_REFUSED, actor=actor, facts=facts, now=now)
                return None
        run.state = following.value
        run.reason = said
        if change is RunChange.START:
            run.started_at = now
        if RunState(run.state).is_final:
            run.finished_at = now
        session.flush()
        append_audit(session, _KINDS[change], actor=actor, facts={**facts, "reason": said}, now=now)
        return run_view(session, run, now=now)

    view = resources.db.run_tx("change_run_state", apply)
    if view is None:
        # Raised after the transaction, so that its record of the attempt stays.
        raise FourEyesError(
            "whoever created a run does not start it",
            run_id=run_id,
            created_by=actor,
            advice=f"Another study lead or admin types: wardround runs start {run_id}",
        )
    resources.wake_driver()
    if change is RunChange.CANCEL:
        resources.wake_sites()
    return view
