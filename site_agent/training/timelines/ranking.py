"""How well codes to come are ranked: precision and recall at k, as counts whose sums over sites are the whole truth.

A timeline is c_1 .. c_n on days d_1 .. d_n. After each code but the last, at position i = 1 .. n-1, everything that is
known is c_1 .. c_i, and a ranking R_i of all codes stands for what comes. Beside it stand a scope and a novelty:

* scope ``next``: the event i+1; ``time-range``: events j > i with d_j - d_i <= the range; ``any``: all events j > i;
* novelty ``new``: codes that are not among c_1 .. c_i; ``old``: codes that are; ``all``: both. R_i ranks only
  candidates of that novelty; top_k(R_i) are its first k, fewer where there are fewer. Equal scores rank by code.

With relevant_i = the codes of that novelty within the scope of i:

    P@k = #{i: relevant_i and top_k(R_i) have a code in common} / #{i: relevant_i is not empty}
    R@k = #{j in E: j is in the scope of an i < j with c_j in top_k(R_i)} / #E

with E the events j = 2 .. n that are in the scope of any position and, for ``new``, are their code's first, for
``old`` are not. So P@k says how often a list of k codes names something that comes, and R@k how much of what came was
ever named. For ``next`` and ``all`` the two are equal. After Foresight (Kraljevic et al. 2022), whose code counts a
prediction as right when any of the top k occurs within its scope. Every count is at most n - 1 for n codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

KS = (1, 3, 5)
"""The lengths of the lists that are counted."""


class Scope(StrEnum):
    """How far a prediction looks."""

    NEXT = "next"
    TIME_RANGE = "time-range"
    ANY = "any"


class Novelty(StrEnum):
    """Which codes a prediction is about."""

    NEW = "new"
    OLD = "old"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingCounts:
    """Counts of one scope and novelty. Sums of them are counts of the union.

    Attributes:
        n_positions: positions at which something of the novelty came within the scope.
        n_hits: by ``KS``, those at which the list named some of it.
        n_events: events that some position had within its scope.
        n_found: by ``KS``, those that some such position's list named.
    """

    n_positions: int = 0
    n_hits: tuple[int, ...] = (0,) * len(KS)
    n_events: int = 0
    n_found: tuple[int, ...] = (0,) * len(KS)

    def __add__(self, other: RankingCounts) -> RankingCounts:
        """The counts of both."""
        return RankingCounts(
            n_positions=self.n_positions + other.n_positions,
            n_hits=tuple(a + b for a, b in zip(self.n_hits, other.n_hits, strict=True)),
            n_events=self.n_events + other.n_events,
            n_found=tuple(a + b for a, b in zip(self.n_found, other.n_found, strict=True)),
        )

    def precision_at(self, k: int) -> float | None:
        """P@k; None where there was no position."""
        return self.n_hits[KS.index(k)] / self.n_positions if self.n_positions else None

    def recall_at(self, k: int) -> float | None:
        """R@k; None where there was no event."""
        return self.n_found[KS.index(k)] / self.n_events if self.n_events else None


def rank_codes(scores: NDArray[np.floating], codes: Sequence[int], novelty: Novelty) -> list[tuple[int, ...]]:
    """The first ``max(KS)`` codes of each position's ranking.

    Args:
        scores: float, shape (n - 1, V), no NaN: row i - 1 scores all codes after c_1 .. c_i were seen.
        codes: c_1 .. c_n, each in 0 .. V-1.
        novelty: which codes are candidates.

    Returns:
        Of each position the best candidates, best first; of equal scores the smaller code first.
    """
    n_codes, longest = scores.shape[1], max(KS)
    is_seen = np.zeros(n_codes, dtype=bool)
    lists: list[tuple[int, ...]] = []
    for position in range(len(codes) - 1):
        is_seen[codes[position]] = True
        match novelty:
            case Novelty.NEW:
                candidates = np.flatnonzero(~is_seen)
            case Novelty.OLD:
                candidates = np.flatnonzero(is_seen)
            case Novelty.ALL:
                candidates = np.arange(n_codes)
        # Candidates rise, and a stable sort keeps the smaller code of two equal scores first.
        order = np.argsort(-scores[position, candidates], kind="stable")[:longest]
        lists.append(tuple(int(code) for code in candidates[order]))
    return lists


def count_timeline(
    lists: Sequence[tuple[int, ...]],
    codes: Sequence[int],
    days: Sequence[int],
    *,
    scope: Scope,
    novelty: Novelty,
    range_days: int,
) -> RankingCounts:
    """The counts of one timeline.

    Args:
        lists: of each position 1 .. n-1, from ``rank_codes`` with the same novelty.
        codes: c_1 .. c_n.
        days: d_1 .. d_n, never falling.
        scope: how far a prediction looks.
        novelty: which codes it is about.
        range_days: for ``time-range``: 0 is the same day.
    """
    is_first = _is_first_of_its_code(codes)
    n_positions, hits = 0, [0] * len(KS)
    named: list[set[int]] = [set() for _ in KS]
    events: set[int] = set()
    for position, ranked in enumerate(lists, start=1):
        seen = set(codes[:position])
        within = list(_within(position, days, scope, range_days))
        relevant = {codes[j] for j in within if _is_wanted(codes[j] not in seen, novelty)}
        wanted = [j for j in within if _is_wanted(is_first[j], novelty)]
        events.update(wanted)
        n_positions += bool(relevant)
        for index, k in enumerate(KS):
            top = set(ranked[:k])
            hits[index] += not relevant.isdisjoint(top)
            named[index].update(j for j in wanted if codes[j] in top)
    return RankingCounts(
        n_positions=n_positions,
        n_hits=tuple(hits),
        n_events=len(events),
        n_found=tuple(len(found) for found in named),
    )


def _within(position: int, days: Sequence[int], scope: Scope, range_days: int) -> Iterator[int]:
    """The events that a prediction after ``position`` events is about, counted from 0."""
    if scope is Scope.NEXT:
        yield position
        return
    for j in range(position, len(days)):
        if scope is Scope.TIME_RANGE and days[j] - days[position - 1] > range_days:
            return
        yield j


def _is_first_of_its_code(codes: Sequence[int]) -> list[bool]:
    seen: set[int] = set()
    is_first: list[bool] = []
    for code in codes:
        is_first.append(code not in seen)
        seen.add(code)
    return is_first


def _is_wanted(is_new: bool, novelty: Novelty) -> bool:  # noqa: FBT001 - one predicate for two of its uses
    return novelty is Novelty.ALL or is_new is (novelty is Novelty.NEW)
