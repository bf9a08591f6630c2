"""How long to wait before trying again: longer each time, and never in step with the other sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPlan:
    """The shape of the waits, in seconds."""

    first_s: float = 0.5
    factor: float = 2.0
    longest_s: float = 10.0
    """A coordinator that was upgraded has its sites back within this; two hundred of them are twenty calls a second."""


class Backoff:
    """Waits that grow until something succeeds, each drawn from the upper half of its range."""

    def __init__(self, draw: Callable[[], float], plan: BackoffPlan | None = None) -> None:
        """Take a source of uniform numbers in [0, 1); it only spreads load, so it need not be secret."""
        self._draw = draw
        self._plan = plan or BackoffPlan()
        self._failures = 0

    def next_wait_s(self) -> float:
        """The wait after one more failure."""
        plan = self._plan
        # The exponent is bounded, so that a day without a network does not overflow a float.
        longest = min(plan.longest_s, plan.first_s * plan.factor ** min(self._failures, 32))
        self._failures += 1
        return longest * (0.5 + 0.5 * self._draw())

    def spread(self) -> float:
        """A factor from 1 to 1.5 on a wait that somebody else named, so that not all who heard it come at once."""
        return 1.0 + 0.5 * self._draw()

    def reset(self) -> None:
        """Something succeeded."""
        self._failures = 0
