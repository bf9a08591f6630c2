"""Between two rounds: does the run begin, go on, wait, or end? Seen in the rows, so that nobody has to send an event.

A round opens among the sites that are present, once they are enough; the others join a later one. An attempt that
ended because sites or storage were away is repeated after a pause that grows, for as long as it takes.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.db.models import Run
from coordinator.db.outbox import add_effect
from coordinator.db.rounds import ended_attempts
from coordinator.db.runs import approved_sites
from coordinator.rounds.attempts import EndedAttempt, NextAttempt, next_attempt
from coordinator.rounds.cohort import invited_sites, is_present
from coordinator.rounds.epochs import lowest_attempt
from coordinator.rounds.events import AbortReason
from coordinator.rounds.run_machine import RunEvent, RunFailure, RunState
from coordinator.rounds.space import WAITS_FOR_SPACE, judge_space, space_for_round
from coordinator.services.effect_kinds import EffectKind
from coordinator.services.epochs import current_epoch, sites_ahead, unacknowledged_restore
from coordinator.services.open_round import open_round
from coordinator.services.turn import Turn
from fl_protocol.ids import SiteId
from fl_protocol.spec.round_spec import RoundKind


def plan_round(turn: Turn) -> None:
    """Do what follows where no round is open; after a restore, nothing before an admin has acknowledged it."""
    if unacknowledged_restore(turn.session) is not None:
        return
    state = RunState(turn.run.state)
    if state is RunState.AWAITING_SITES:
        n_approved = len(approved_sites(turn.session, turn.run.run_id, now=turn.now) & set(turn.pins))
        if n_approved >= turn.rules.quorum:
            turn.move_run(RunEvent.QUORUM_APPROVED)
    elif state in {RunState.ACTIVE, RunState.PAUSED}:
        _plan(turn, state)


def following_attempt(session: Session, run: Run) -> NextAttempt:
    """The attempt that comes next at the round that comes next."""
    ended = [
        EndedAttempt(
            round_attempt=row.round_attempt,
            reason=AbortReason(row.reason or AbortReason.RUN_CANCELLED),
            finished_at=row.finished_at or row.opened_at,
        )
        for row in ended_attempts(session, run.run_id, run.next_round_index)
    ]
    return next_attempt(ended, lowest=lowest_attempt(current_epoch(session)))


def invitable_sites(turn: Turn) -> tuple[SiteId, ...]:
    """Who would be invited to a round that opens now."""
    return invited_sites(
        turn.pins,
        approved=approved_sites(turn.session, turn.run.run_id, now=turn.now),
        active=[site for site, row in turn.active_sites().items() if is_present(row.last_seen_at, now=turn.now)],
    )


def _is_short_of_space(turn: Turn, *, n_sites: int) -> bool:
    """Whether the blob store lacks the room for a round. The run says so, until it has."""
    facts = turn.ctx.roles.run_facts(turn.run)
    needed = space_for_round(
        n_sites=n_sites,
        payload_bytes=max(facts.payload(kind).n_bytes for kind in RoundKind),
        state_bytes=8 * facts.adapter.n_parameters,
    )
    short = judge_space(needed, turn.ctx.blobs.free_bytes())
    _say_space(turn, None if short is None else short.reason())
    return short is not None


def _say_space(turn: Turn, reason: str | None) -> None:
    was_waiting = (turn.run.reason or "").startswith(WAITS_FOR_SPACE)
    if reason != turn.run.reason and (reason is not None or was_waiting):
        turn.run.reason = reason
        turn.is_changed = True


def _behind_sites(turn: Turn) -> str | None:
    """Why a restored run cannot go on: too many sites hold results that the backup lacks, and start from no other."""
    epoch = current_epoch(turn.session)
    ended = ended_attempts(turn.session, turn.run.run_id, turn.run.next_round_index)
    if not epoch or not ended or ended[-1].round_attempt < lowest_attempt(epoch):
        return None
    ahead = sites_ahead(turn.session, ended[-1])
    if not ahead or len(turn.pins) - len(ahead) >= turn.rules.min_ready:
        return None
    return (
        f"{RunFailure.RESTORED_BEHIND_SITES.value}: {', '.join(ahead)} hold results of rounds that were committed after"
        " the backup and are lost here; start a new run"
    )


def _plan(turn: Turn, state: RunState) -> None:
    if turn.run.next_round_index > turn.ctx.roles.run_facts(turn.run).spec.rounds:
        turn.move_run(RunEvent.ROUNDS_COMPLETED)
        add_effect(turn.session, turn.run.run_id, kind=EffectKind.CREATE_RELEASE, payload={}, now=turn.now)
        return
    following = following_attempt(turn.session, turn.run)
    if following.is_given_up:
        last = None if following.last_reason is None else following.last_reason.value
        turn.move_run(RunEvent.GAVE_UP, reason=f"{RunFailure.ATTEMPTS_EXHAUSTED.value}: {last}")
        return
    if reason := _behind_sites(turn):
        turn.move_run(RunEvent.GAVE_UP, reason=reason)
        return
    if state is RunState.PAUSED or (following.not_before is not None and turn.now < following.not_before):
        return
    invited = invitable_sites(turn)
    if len(invited) < turn.rules.min_ready:
        # Whether there is room is asked again once there are sites.
        _say_space(turn, None)
        return
    if _is_short_of_space(turn, n_sites=len(invited)):
        return
    open_round(
        turn.ctx,
        turn.session,
        turn.run,
        round_attempt=following.round_attempt,
        invited=invited,
        trail=turn.trail,
        now=turn.now,
    )
