"""How many sites each step needs: the approved quorum and the thresholds of the secure sum, whichever asks for more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from fl_protocol.spec.secagg_params import SecAggParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """What the RunSpec says of cohorts and times.

    Attributes:
        quorum: participations needed to commit.
        params: the secure sum's own rules; every site applies its own besides.
        round_deadline: from the opening of a round; before it nobody is given up in training.
        phase_deadline: the idle deadline: how long a site may be without any progress before it is given up.
        enough: as soon as so many are ready, training closes after ``ENOUGH_GRACE``; None to wait for all.
    """

    quorum: int
    params: SecAggParams
    round_deadline: timedelta
    phase_deadline: timedelta
    enough: int | None = None

    @property
    def min_ready(self) -> int:
        """How many sites an exchange needs to begin."""
        return max(self.quorum, self.params.min_cohort)

    def min_sharers(self, n: int) -> int:
        """How many of a cohort of ``n`` must have dealt shares (U2)."""
        return max(self.quorum, self.params.min_sharers(n))

    def min_survivors(self, n: int) -> int:
        """How many of a cohort of ``n`` must have uploaded (U3)."""
        return max(self.quorum, self.params.min_survivors(n))

    def min_voices(self, n: int) -> int:
        """How many of a cohort of ``n`` must confirm (U4) and reveal (U5): Shamir's threshold."""
        return self.params.threshold(n)
