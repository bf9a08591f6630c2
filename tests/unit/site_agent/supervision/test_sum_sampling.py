"""Which chunks are drawn: within the budget, the 64-bit section first, unforeseeable, and the same when asked again."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.testing.federation import small_layout
from site_agent.supervision.sum_sampling import every_chunk, sampled_chunks

N_DRAWS = 2000
WORDS_A_CHUNK = CHUNK_BYTES // 4


def seed(number: int) -> bytes:
    return hashlib.sha256(f"seed {number}".encode()).digest()


def layout_of(n_chunks: int) -> object:
    # A little less than so many whole chunks of 32-bit words; eight 64-bit words end the last one.
    return small_layout(n_ring32=n_chunks * WORDS_A_CHUNK - 16, n_ring64=8)


@given(n_chunks=st.integers(1, 40), n_sites=st.integers(3, 200), number=st.integers(0, 10**6))
def test_sample_is_of_the_vector_without_repetition_and_within_the_budget(
    n_chunks: int, n_sites: int, number: int
) -> None:
    layout = layout_of(n_chunks)
    chunks = sampled_chunks(seed(number), layout, n_sites=n_sites)
    assert set(chunks) <= set(range(n_chunks))
    assert list(chunks) == sorted(set(chunks))
    # Four MiB or a quarter of the sum, whichever is more; one chunk alone may cost more than that.
    budget = max(4 * 2**20, n_chunks * 2**20 / 4)
    assert len(chunks) <= max(1, budget / (n_sites * 2**20))


@given(n_chunks=st.integers(1, 40), n_sites=st.integers(3, 200), number=st.integers(0, 10**6))
def test_same_seed_draws_the_same_chunks(n_chunks: int, n_sites: int, number: int) -> None:
    layout = layout_of(n_chunks)
    first = sampled_chunks(seed(number), layout, n_sites=n_sites)
    assert sampled_chunks(seed(number), layout, n_sites=n_sites) == first


def test_small_sum_of_three_sites_is_checked_whole() -> None:
    assert sampled_chunks(seed(1), small_layout(), n_sites=3) == (0,)


def test_64_bit_section_is_in_every_sample_of_two_chunks_or_more() -> None:
    # 24 MiB over three sites: two chunks are six MiB, a quarter of the sum.
    for number in range(200):
        chunks = sampled_chunks(seed(number), layout_of(24), n_sites=3)
        assert len(chunks) == 2
        assert 23 in chunks


def test_every_other_chunk_is_drawn_as_often_as_any() -> None:
    counts = Counter(
        chunk
        for number in range(N_DRAWS)
        for chunk in sampled_chunks(seed(number), layout_of(24), n_sites=3)
        if chunk != 23
    )
    # 23 chunks, 2000 draws: chi-square with 22 degrees of freedom is above 60 with a probability of 2e-5.
    expected = N_DRAWS / 23
    assert sum((counts[chunk] - expected) ** 2 / expected for chunk in range(23)) < 60


@pytest.mark.parametrize(("n_sites", "probability"), [(8, 0.5), (40, 0.1)])
def test_chunk_that_costs_more_than_the_budget_is_drawn_with_the_probability_that_keeps_the_mean(
    n_sites: int, probability: float
) -> None:
    layout = layout_of(3)
    drawn = [sampled_chunks(seed(number), layout, n_sites=n_sites) for number in range(N_DRAWS)]
    assert {len(chunks) for chunks in drawn} == {0, 1}
    share = sum(map(len, drawn)) / N_DRAWS
    # Five standard deviations.
    assert abs(share - probability) < 5 * (probability * (1 - probability) / N_DRAWS) ** 0.5
    tail = sum(chunks == (2,) for chunks in drawn) / sum(map(len, drawn))
    # Half the times the tail, and a third of the other half.
    assert abs(tail - 2 / 3) < 0.17


def test_every_chunk_is_all_of_them() -> None:
    assert every_chunk(layout_of(5)) == (0, 1, 2, 3, 4)
