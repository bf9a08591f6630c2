"""The two baselines, against their definitions computed one patient at a time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from site_agent.training.timelines.baselines import CoOccurrence, Popularity

N_CODES = 6
patients = st.lists(st.lists(st.integers(0, N_CODES - 1), max_size=6), max_size=8)
timeline = st.lists(st.integers(0, N_CODES - 1), min_size=1, max_size=6, unique=True)


@given(training=patients, codes=timeline)
def test_popularity_counts_patients_at_every_position(training: list[list[int]], codes: list[int]) -> None:
    scores = Popularity(training, n_codes=N_CODES).scores(codes)
    expected = [sum(code in patient for patient in training) for code in range(N_CODES)]
    assert scores.shape == (len(codes) - 1, N_CODES)
    assert all(row.tolist() == expected for row in scores)


@given(training=patients, codes=timeline)
def test_co_occurrence_sums_conditional_shares_and_breaks_ties_by_popularity(
    training: list[list[int]], codes: list[int]
) -> None:
    scores = CoOccurrence(training, n_codes=N_CODES).scores(codes)
    assert scores.shape == (len(codes) - 1, N_CODES)

    def share(b: int, a: int) -> Fraction:
        having = [patient for patient in training if a in patient]
        return Fraction(sum(b in patient for patient in having), len(having)) if having and a != b else Fraction(0)

    for position in range(1, len(codes)):
        sums = [sum((share(b, a) for a in codes[:position]), Fraction(0)) for b in range(N_CODES)]
        counts = [sum(b in patient for patient in training) for b in range(N_CODES)]
        expected = sorted(range(N_CODES), key=lambda b: (-sums[b], -counts[b], b))
        found = np.argsort(-scores[position - 1], kind="stable").tolist()
        assert [(sums[b], counts[b]) for b in found] == [(sums[b], counts[b]) for b in expected]
