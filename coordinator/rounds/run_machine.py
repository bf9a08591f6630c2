"""The run: ``DRAFT -> AWAITING_SITES -> ACTIVE <-> PAUSED -> COMPLETED | CANCELLED | FAILED(reason)``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from coordinator.errors import IllegalTransitionError


class RunState(StrEnum):
    """The states of a run."""

    DRAFT = "DRAFT"
    AWAITING_SITES = "AWAITING_SITES"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether no event leads on from here."""
        return self in {RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED}


class RunEvent(StrEnum):
    """What happens to a run."""

    STARTED = "started"
    QUORUM_APPROVED = "quorum-approved"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    ROUNDS_COMPLETED = "rounds-completed"
    GAVE_UP = "gave-up"


class RunFailure(StrEnum):
    """Why a run FAILED."""

    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    RESTORED_BEHIND_SITES = "restored-behind-sites"


TRANSITIONS: Mapping[tuple[RunState, RunEvent], RunState] = MappingProxyType(
    {
        (RunState.DRAFT, RunEvent.STARTED): RunState.AWAITING_SITES,
        (RunState.DRAFT, RunEvent.CANCELLED): RunState.CANCELLED,
        (RunState.AWAITING_SITES, RunEvent.QUORUM_APPROVED): RunState.ACTIVE,
        (RunState.AWAITING_SITES, RunEvent.CANCELLED): RunState.CANCELLED,
        (RunState.ACTIVE, RunEvent.PAUSED): RunState.PAUSED,
        (RunState.ACTIVE, RunEvent.CANCELLED): RunState.CANCELLED,
        (RunState.ACTIVE, RunEvent.ROUNDS_COMPLETED): RunState.COMPLETED,
        (RunState.ACTIVE, RunEvent.GAVE_UP): RunState.FAILED,
        (RunState.PAUSED, RunEvent.RESUMED): RunState.ACTIVE,
        (RunState.PAUSED, RunEvent.CANCELLED): RunState.CANCELLED,
        # A round that was open at the pause goes to its end, and may be the last one or the last attempt.
        (RunState.PAUSED, RunEvent.ROUNDS_COMPLETED): RunState.COMPLETED,
        (RunState.PAUSED, RunEvent.GAVE_UP): RunState.FAILED,
    }
)


def step_run(state: RunState, event: RunEvent) -> RunState:
    """The state that follows.

    Raises:
        IllegalTransitionError: the table does not list the pair.
    """
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise IllegalTransitionError(
            "the run's state does not permit this", machine="run", state=state.value, event=event.value
        ) from None
