"""What the coordinator stores of one site says nothing: it is uniform, and two maskings of one payload share nothing.

Statistical tests, with fixed seeds: they either always pass or always fail. alpha = 1e-6 each, two-sided where stated.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.testing.federation import Federation, small_layout
from fl_protocol.testing.strategies import site_names

ALPHA = 1e-6
N_RUNS = 40


def constant_payload(federation: Federation) -> dict[SiteId, RingVector]:
    """As far from uniform as can be: every word of every site is the same small number."""
    layout = federation.layout
    return {
        site: RingVector(ring32=np.full(layout.n_ring32, 3, "<u4"), ring64=np.full(layout.n_ring64, 3, "<u8"))
        for site in federation.site_ids
    }


@pytest.fixture(scope="module")
def stored() -> list[RingVector]:
    """The masked vector of one site, stored in each of many exchanges over the same payload."""
    federation = Federation(site_names(3), small_layout(n_ring32=512, n_ring64=256))
    payload = constant_payload(federation)
    vectors = []
    for attempt in range(N_RUNS):
        outcome = federation.exchange(payload, opened=federation.open_exchange(exchange_attempt=attempt))
        assert set(outcome.total.ring32.tolist()) == {9}
        vectors.append(outcome.conversation.uploads[federation.site_ids[1]])
    return vectors


@pytest.mark.parametrize("ring", ["ring32", "ring64"])
def test_masked_vector_bytes_are_uniform_over_many_runs(stored: list[RingVector], ring: str) -> None:
    words = np.stack([getattr(vector, ring) for vector in stored])
    octets = words.view(np.uint8).reshape(len(stored), -1)
    p_values = [stats.chisquare(np.bincount(octets.ravel(), minlength=256)).pvalue]
    # Each byte of a word for itself: a mask that left one of them alone would show here.
    width = words.dtype.itemsize
    p_values += [stats.chisquare(np.bincount(octets[:, i::width].ravel(), minlength=256)).pvalue for i in range(width)]
    assert min(p_values) > ALPHA / len(p_values)


def test_masked_vector_one_word_is_uniform_over_the_runs(stored: list[RingVector]) -> None:
    """One place of the vector, seen again and again: its high bits fall evenly into 8 classes."""
    p_values = []
    for place in range(0, 512, 8):
        classes = np.array([int(vector.ring32[place]) >> 29 for vector in stored])
        p_values.append(stats.chisquare(np.bincount(classes, minlength=8)).pvalue)
    assert min(p_values) > ALPHA / len(p_values)


def test_uniformity_test_itself_sees_a_mask_of_fewer_bits(stored: list[RingVector]) -> None:
    """The test can fail: with the top bit of each word left as it was, chi-square is far below alpha."""
    words = np.stack([vector.ring32 & np.uint32(0x7FFFFFFF) for vector in stored])
    octets = words.view(np.uint8).reshape(len(stored), -1)
    assert stats.chisquare(np.bincount(octets[:, 3::4].ravel(), minlength=256)).pvalue < ALPHA


def test_same_update_masked_in_two_exchanges_shares_nothing(stored: list[RingVector]) -> None:
    """Equal words and equal bytes of any two maskings are as many as chance gives."""
    equal_words = equal_bytes = n_words = n_bytes = 0
    differences = []
    for i, first in enumerate(stored):
        for second in stored[i + 1 :]:
            equal_words += int(np.count_nonzero(first.ring32 == second.ring32))
            equal_bytes += int(np.count_nonzero(first.ring32.view(np.uint8) == second.ring32.view(np.uint8)))
            n_words += first.ring32.size
            n_bytes += first.ring32.nbytes
    assert stats.binomtest(equal_words, n_words, 2.0**-32, alternative="greater").pvalue > ALPHA
    assert stats.binomtest(equal_bytes, n_bytes, 1 / 256).pvalue > ALPHA
    # The difference of two maskings is the difference of two masks: uniform too.
    for first, second in itertools.pairwise(stored):
        differences.append((first.ring32 - second.ring32).view(np.uint8))
    counts = np.bincount(np.concatenate(differences), minlength=256)
    assert stats.chisquare(counts).pvalue > ALPHA


def test_same_update_masked_by_two_sites_of_one_exchange_shares_nothing() -> None:
    federation = Federation(site_names(3), small_layout(n_ring32=20_000, n_ring64=2))
    outcome = federation.exchange(constant_payload(federation))
    first, second, third = (outcome.conversation.uploads[site].ring32 for site in federation.site_ids)
    for a, b in ((first, second), (second, third), (first, third)):
        equal = int(np.count_nonzero(a.view(np.uint8) == b.view(np.uint8)))
        assert stats.binomtest(equal, a.nbytes, 1 / 256).pvalue > ALPHA
        # Pair masks cancel only when all three are added.
        assert stats.chisquare(np.bincount((a + b).view(np.uint8), minlength=256)).pvalue > ALPHA
