"""The note that a round or its exchange moved from one state to the next: told to whoever measures phases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from coordinator.db.models import Round
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.round_machine import RoundState
from coordinator.services.round_access import ref_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMoved:
    """One step of one machine, of a round or of its latest exchange."""

    round: RoundRef
    left: RoundState | ExchangeState
    entered: RoundState | ExchangeState
    at: datetime

    @classmethod
    def of(
        cls, row: Round, *, left: RoundState | ExchangeState, entered: RoundState | ExchangeState, at: datetime
    ) -> PhaseMoved:
        """The move of a round's own machine, or of its exchange's: the states say which."""
        return cls(round=ref_of(row), left=left, entered=entered, at=at)
