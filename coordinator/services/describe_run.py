"""What a run waits for, in one sentence for people."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.exchanges import latest_exchange
from coordinator.db.models import Run
from coordinator.db.rounds import open_round, participations_of
from coordinator.db.runs import approved_sites
from coordinator.db.sites import active_sites
from coordinator.rounds import exchange_machine
from coordinator.rounds.round_machine import RoundState, waits_for
from coordinator.rounds.run_machine import RunState
from coordinator.services.role_cache import RoleCache
from coordinator.services.round_status import exchange_status, round_status

_ROLES = RoleCache()
"""Parsed RunSpecs, by digest; what it holds is derived from frozen bytes."""


def waiting_for(session: Session, run: Run, now: datetime) -> str:
    """What the run waits for, or that it has ended."""
    del now
    state = RunState(run.state)
    match state:
        case RunState.DRAFT:
            return "Waits to be started."
        case RunState.COMPLETED:
            return "All rounds are committed."
        case RunState.CANCELLED:
            return "Was cancelled."
        case RunState.FAILED:
            return f"Failed: {run.reason}."
        case _:
            return _waiting(session, run, state)


def _waiting(session: Session, run: Run, state: RunState) -> str:
    row = open_round(session, run.run_id)
    if row is not None:
        participations = participations_of(session, row)
        exchange = latest_exchange(session, row)
        if row.state == RoundState.EXCHANGING.value and exchange is not None:
            said = exchange_machine.waits_for(exchange_status(exchange, participations))
        else:
            said = waits_for(round_status(row, exchange, participations))
        return f"Round {row.round_index}: {said}"
    if state is RunState.PAUSED:
        return "Is paused; resume it to open the next round."
    return _waiting_for_sites(session, run, state)


def _waiting_for_sites(session: Session, run: Run, state: RunState) -> str:
    facts = _ROLES.run_facts(run)
    roster = set(facts.spec.cohort.pins)
    approved = approved_sites(session, run.run_id) & roster
    active = approved & set(active_sites(session, roster))
    missing = ", ".join(sorted(roster - approved)) or "none"
    if state is RunState.AWAITING_SITES:
        return f"{len(approved)} of {facts.rules.quorum} approvals needed; no word yet from: {missing}."
    if len(active) < facts.rules.min_ready:
        away = ", ".join(sorted(approved - active)) or "none"
        present = f"{len(active)} of {facts.rules.min_ready} sites may take part"
        return f"{present}; not approved: {missing}; not active: {away}."
    return f"Round {run.next_round_index} is about to open."
