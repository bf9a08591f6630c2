"""Nobody drove a run for a while: the coordinator was down, or its database away. Whoever is waited for has time anew.

Deadlines count from the last progress, and what nobody could hear is no silence: sites that trained through an upgrade
are not given up for it.
"""

from __future__ import annotations

from coordinator.db.exchanges import latest_exchange
from coordinator.db.models import Round
from coordinator.db.rounds import participations_of
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.round_machine import RoundState
from coordinator.services.turn import Turn

_ENDS_BY_TIME = frozenset(
    {
        ExchangeState.ADVERTISING.value,
        ExchangeState.SHARING.value,
        ExchangeState.COLLECTING.value,
        ExchangeState.CONFIRMING.value,
    }
)
"""REVEALING waits for whoever it needs in any case, and for the others ten seconds."""


def give_time_anew(turn: Turn, row: Round) -> None:
    """Let the idle deadline of everybody that the open round waits for begin now."""
    exchange = latest_exchange(turn.session, row)
    if exchange is not None and exchange.state in _ENDS_BY_TIME:
        exchange.phase_deadline_at = max(exchange.phase_deadline_at, turn.now + turn.rules.phase_deadline)
        turn.is_changed = True
    if row.state == RoundState.TRAINING.value:
        for participation in participations_of(turn.session, row).values():
            if ParticipationState(participation.state).is_at_work:
                participation.updated_at = turn.now
                turn.is_changed = True
