from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_protocol.codec.ring_vector import RingVector, RingVectorInvalidError
from fl_protocol.secagg import masking
from fl_protocol.secagg.masking import MaskSign, MaskTerm, apply_masks


def term(number: int, sign: MaskSign = MaskSign.ADD) -> MaskTerm:
    return MaskTerm(key32=bytes([number]) * 32, key64=bytes([number + 100]) * 32, sign=sign)


def stream(key: bytes, n_bytes: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(n_bytes))


def naive(vector: RingVector, terms: list[MaskTerm]) -> RingVector:
    """Word by word with Python integers."""
    sums32, sums64 = [int(w) for w in vector.ring32], [int(w) for w in vector.ring64]
    for one in terms:
        sign = 1 if one.sign is MaskSign.ADD else -1
        mask32, mask64 = stream(one.key32, 4 * len(sums32)), stream(one.key64, 8 * len(sums64))
        for i in range(len(sums32)):
            sums32[i] = (sums32[i] + sign * int.from_bytes(mask32[4 * i : 4 * i + 4], "little")) % 2**32
        for i in range(len(sums64)):
            sums64[i] = (sums64[i] + sign * int.from_bytes(mask64[8 * i : 8 * i + 8], "little")) % 2**64
    return RingVector(ring32=np.array(sums32, "<u4"), ring64=np.array(sums64, "<u8"))


def sample(n32: int, n64: int) -> RingVector:
    generator = np.random.default_rng(7)
    return RingVector(
        ring32=generator.integers(0, 2**32, n32, dtype=np.uint32),
        ring64=generator.integers(0, 2**64, n64, dtype=np.uint64),
    )


TERMS = [term(1), term(2, MaskSign.SUBTRACT), term(3)]


@pytest.mark.parametrize(("n32", "n64"), [(1, 0), (0, 1), (5, 3), (301, 77)])
def test_apply_masks_any_shape_equals_integer_arithmetic(n32: int, n64: int) -> None:
    vector = sample(n32, n64)
    expected = naive(vector, TERMS)
    apply_masks(vector, TERMS)
    assert vector.equals(expected)


def test_apply_masks_chunks_smaller_than_the_vector_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "CACHE_CHUNK_BYTES", 64)
    vector = sample(203, 51)
    expected = naive(vector, TERMS)
    apply_masks(vector, TERMS)
    assert vector.equals(expected)


def test_apply_masks_opposite_terms_restore_the_vector() -> None:
    vector = sample(100, 10)
    before = vector.copy()
    apply_masks(vector, TERMS)
    assert not vector.equals(before)
    apply_masks(vector, [MaskTerm(key32=t.key32, key64=t.key64, sign=t.sign.opposite) for t in TERMS])
    assert vector.equals(before)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 402, 403, 404, 405, 411, 412, 413, 444])
def test_apply_masks_two_ranges_touch_every_word_once(cut: int) -> None:
    whole = sample(101, 5)
    parts = whole.copy()
    apply_masks(whole, TERMS)
    apply_masks(parts, TERMS, start_byte=cut)
    apply_masks(parts, TERMS, stop_byte=cut)
    assert parts.equals(whole)


def test_apply_masks_window_equals_that_part_of_the_whole() -> None:
    whole = sample(101, 9)
    window = RingVector(ring32=whole.ring32[33:60].copy(), ring64=whole.ring64[3:5].copy())
    apply_masks(whole, TERMS)
    apply_masks(window, TERMS, first32=33, first64=3)
    np.testing.assert_array_equal(window.ring32, whole.ring32[33:60])
    np.testing.assert_array_equal(window.ring64, whole.ring64[3:5])


def test_mask_ranges_run_backwards_equal_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "CACHE_CHUNK_BYTES", 32)
    whole = sample(101, 9)
    parts = whole.copy()
    apply_masks(whole, TERMS)
    work = masking.mask_ranges(parts, TERMS, 4)
    assert len(work) > 1
    masking.run_in_order(work[::-1])
    assert parts.equals(whole)


def test_apply_masks_memory_beyond_the_vector_is_a_few_chunks_for_any_number_of_peers() -> None:
    vector = RingVector.zeros(2_000_000, 8)
    terms = [term(number) for number in range(40)]
    tracemalloc.start()
    try:
        apply_masks(vector, terms)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * masking.CACHE_CHUNK_BYTES


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (8, 4), (0, 10_000)])
def test_apply_masks_range_outside_the_vector_is_refused(start: int, stop: int) -> None:
    with pytest.raises(RingVectorInvalidError):
        apply_masks(sample(4, 4), TERMS, start_byte=start, stop_byte=stop)


def test_add_into_words_wrap_as_the_rings_do() -> None:
    total = RingVector(ring32=np.array([2**32 - 1], "<u4"), ring64=np.array([2**64 - 1], "<u8"))
    masking.add_into(total, RingVector(ring32=np.array([3], "<u4"), ring64=np.array([5], "<u8")))
    assert (int(total.ring32[0]), int(total.ring64[0])) == (2, 4)


def test_add_into_other_shape_is_refused() -> None:
    with pytest.raises(RingVectorInvalidError):
        masking.add_into(sample(4, 1), sample(5, 1))


def test_mask_term_sections_have_different_keys() -> None:
    made = masking.mask_term(bytes(32), MaskSign.ADD)
    assert len({made.key32, made.key64, bytes(32)}) == 3
    assert made.key32.hex() not in repr(made)
