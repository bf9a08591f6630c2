"""P@k and R@k against an oracle that was written from the definition, with other data structures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from site_agent.training.timelines.ranking import (
    KS,
    Novelty,
    RankingCounts,
    Scope,
    count_timeline,
    rank_codes,
)

EVERY = list(itertools.product(Scope, Novelty))


def counts_of(
    scores: NDArray[np.float64], codes: list[int], days: list[int], scope: Scope, novelty: Novelty, range_days: int
) -> RankingCounts:
    lists = rank_codes(scores, codes, novelty)
    return count_timeline(lists, codes, days, scope=scope, novelty=novelty, range_days=range_days)


def oracle(
    scores: NDArray[np.float64], codes: list[int], days: list[int], scope: str, novelty: str, range_days: int, k: int
) -> tuple[int, int, int, int]:
    """(positions, hits, events, found), all pairs one by one, counted from 1 as in the definition."""
    n, n_codes = len(codes), scores.shape[1]
    c = {place: codes[place - 1] for place in range(1, n + 1)}
    d = {place: days[place - 1] for place in range(1, n + 1)}

    def in_scope(i: int, j: int) -> bool:
        return {"next": j == i + 1, "time-range": j > i and d[j] - d[i] <= range_days, "any": j > i}[scope]

    def known(i: int) -> list[int]:
        return [c[place] for place in range(1, i + 1)]

    def top(i: int) -> list[int]:
        candidates = [
            code
            for code in range(n_codes)
            if novelty == "all"
            or (novelty == "new" and code not in known(i))
            or (novelty == "old" and code in known(i))
        ]
        return sorted(candidates, key=lambda code: (-float(scores[i - 1, code]), code))[:k]

    def matches(is_new: bool) -> bool:
        return novelty == "all" or (novelty == "new") == is_new

    positions = hits = 0
    for i in range(1, n):
        relevant = [c[j] for j in range(1, n + 1) if in_scope(i, j) and matches(c[j] not in known(i))]
        positions += len(relevant) > 0
        hits += any(code in top(i) for code in relevant)
    events = [
        j for j in range(2, n + 1) if any(in_scope(i, j) for i in range(1, n)) and matches(c[j] not in known(j - 1))
    ]
    found = [j for j in events if any(in_scope(i, j) and c[j] in top(i) for i in range(1, n))]
    return positions, hits, len(events), len(found)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[int], list[int], int]:
    n_codes = draw(st.integers(1, 8))
    codes = draw(st.lists(st.integers(0, n_codes - 1), min_size=1, max_size=9))
    days = sorted(draw(st.lists(st.integers(0, 12), min_size=len(codes), max_size=len(codes))))
    size = (len(codes) - 1) * n_codes
    # Few values, so that ties are common.
    values = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    scores = np.array(values, dtype=np.float64).reshape(len(codes) - 1, n_codes)
    return scores, codes, days, draw(st.integers(0, 6))


@given(case=timelines())
def test_counts_equal_the_brute_force_oracle(case: tuple[NDArray[np.float64], list[int], list[int], int]) -> None:
    scores, codes, days, range_days = case
    for scope, novelty in EVERY:
        counts = counts_of(scores, codes, days, scope, novelty, range_days)
        for index, k in enumerate(KS):
            found = (counts.n_positions, counts.n_hits[index], counts.n_events, counts.n_found[index])
            assert found == oracle(scores, codes, days, scope.value, novelty.value, range_days, k), (scope, novelty, k)


@given(case=timelines())
def test_counts_are_bounded_by_the_timeline_and_rise_with_k(
    case: tuple[NDArray[np.float64], list[int], list[int], int],
) -> None:
    scores, codes, days, range_days = case
    for scope, novelty in EVERY:
        counts = counts_of(scores, codes, days, scope, novelty, range_days)
        for n_right, n_all in ((counts.n_hits, counts.n_positions), (counts.n_found, counts.n_events)):
            assert list(n_right) == sorted(n_right)
            assert 0 <= n_right[-1] <= n_all <= len(codes) - 1


# c = A B A C on days 0 1 1 9 (A=0, B=1, C=2, D=3). The rankings are written out, best first.
CODES, DAYS = [0, 1, 0, 2], [0, 1, 1, 9]
RANKED = [[3, 1, 0, 2], [0, 3, 2, 1], [3, 1, 0, 2]]
SCORES = np.zeros((3, 4))
for position, order in enumerate(RANKED):
    for rank, code in enumerate(order):
        SCORES[position, code] = -rank


@pytest.mark.parametrize(
    ("scope", "novelty", "expected"),
    [
        # next/all: comes B, A, C; lists of 1: D, A, D; of 3: DBA, ADC, DBA.
        (Scope.NEXT, Novelty.ALL, (3, (1, 2, 3), 3, (1, 2, 3))),
        # next/new: B after A (DBC), C after A B A (DC); A after A B is old.
        (Scope.NEXT, Novelty.NEW, (2, (0, 2, 2), 2, (0, 2, 2))),
        # next/old: A after A B; candidates A B by score: A first.
        (Scope.NEXT, Novelty.OLD, (1, (1, 1, 1), 1, (1, 1, 1))),
        # within a day: {B, A} after A; {A} after A B; nothing after the second A, for C is eight days on.
        (Scope.TIME_RANGE, Novelty.ALL, (2, (1, 2, 2), 2, (1, 2, 2))),
        (Scope.TIME_RANGE, Novelty.NEW, (1, (0, 1, 1), 1, (0, 1, 1))),
        # any/all: {B A C}, {A C}, {C}; C is named by the lists of 3 after A B.
        (Scope.ANY, Novelty.ALL, (3, (1, 2, 3), 3, (1, 3, 3))),
        # any/new: {B C} of DBC, {C} of DC, {C} of DC.
        (Scope.ANY, Novelty.NEW, (3, (0, 3, 3), 2, (0, 2, 2))),
        # any/old: {A} of A, {A} of AB; C never is.
        (Scope.ANY, Novelty.OLD, (2, (2, 2, 2), 1, (1, 1, 1))),
    ],
)
def test_counts_of_a_timeline_by_hand(
    scope: Scope, novelty: Novelty, expected: tuple[int, tuple[int, ...], int, tuple[int, ...]]
) -> None:
    counts = counts_of(SCORES, CODES, DAYS, scope, novelty, 1)
    assert (counts.n_positions, counts.n_hits, counts.n_events, counts.n_found) == expected


def test_sums_of_counts_give_the_ratio_of_sums() -> None:
    first = RankingCounts(n_positions=3, n_hits=(1, 2, 3), n_events=4, n_found=(0, 1, 2))
    total = first + RankingCounts(n_positions=1, n_hits=(1, 1, 1), n_events=1, n_found=(1, 1, 1))
    assert total.precision_at(1) == 2 / 4
    assert total.recall_at(5) == 3 / 5
    assert RankingCounts().precision_at(3) is None
    assert RankingCounts().recall_at(1) is None
