"""Two baselines that no network is needed for: what is frequent, and what goes with what was seen.

Both are counts over training timelines, and rank every code at every position. A code that no training timeline has
scores zero. They are what a model has to beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


class Baseline(Protocol):
    """Ranks what comes after each beginning of a timeline."""

    def scores(self, codes: Sequence[int]) -> Float64Array:
        """float64, shape (n - 1, V): row i - 1 scores every code after c_1 .. c_i were seen."""
        ...


class Popularity:
    """Scores a code by the number of training patients who have it, whatever was seen."""

    def __init__(self, timelines: Iterable[Sequence[int]], *, n_codes: int) -> None:
        """Count; a timeline holds codes in 0 .. n_codes-1."""
        self._counts = np.zeros(n_codes, dtype=np.float64)
        for codes in timelines:
            self._counts[list(set(codes))] += 1

    def scores(self, codes: Sequence[int]) -> Float64Array:
        """The same row at each position."""
        return np.tile(self._counts, (max(len(codes) - 1, 0), 1))


class CoOccurrence:
    """Scores code b after c_1 .. c_i by sum_j P(b | c_j), P(b | a) = patients with a and b / patients with a.

    Order is not looked at: b may have come before a in the training patients. An a that no training patient has says
    nothing, and among codes of equal score the more popular comes first.
    """

    def __init__(self, timelines: Iterable[Sequence[int]], *, n_codes: int) -> None:
        """Count; a timeline holds codes in 0 .. n_codes-1."""
        pairs = np.zeros((n_codes, n_codes), dtype=np.float64)
        for codes in timelines:
            present = sorted(set(codes))
            pairs[np.ix_(present, present)] += 1
        counts = np.diag(pairs).copy()
        np.fill_diagonal(pairs, 0.0)
        conditional: Float64Array = np.divide(
            pairs, counts[:, None], out=np.zeros_like(pairs), where=counts[:, None] > 0
        )
        self._conditional = conditional
        # Small enough to decide between equal scores only: two sums of such quotients differ by more, or not at all.
        self._tie_break = counts * 1e-9

    def scores(self, codes: Sequence[int]) -> Float64Array:
        """A row for each position, each the sum over all codes seen so far."""
        seen = np.cumsum(self._conditional[list(codes[:-1])], axis=0)
        return np.asarray(seen + self._tie_break, dtype=np.float64)
