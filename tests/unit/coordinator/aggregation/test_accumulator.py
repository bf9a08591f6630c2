from __future__ import annotations

import numpy as np
import pytest

from coordinator.aggregation.accumulator import RingAccumulator
from coordinator.errors import VectorLengthError
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg.masking import MaskSign, apply_masks, mask_term

N32, N64 = 1001, 37


def vectors(count: int) -> list[RingVector]:
    rng = np.random.default_rng(3)
    return [
        RingVector(
            ring32=rng.integers(0, 2**32, N32, dtype=np.uint32), ring64=rng.integers(0, 2**64, N64, dtype=np.uint64)
        )
        for _ in range(count)
    ]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 8, 64, 1000, 4001, 10_000])
def test_accumulator_sums_vectors_cut_anywhere(size: int) -> None:
    given = vectors(3)
    accumulator = RingAccumulator(n_ring32=N32, n_ring64=N64)
    for vector in given:
        accumulator.add(cut(vector.to_bytes(), size))
    # Python integers: independent of numpy's wrapping.
    sum32 = [sum(int(v.ring32[i]) for v in given) % 2**32 for i in range(N32)]
    sum64 = [sum(int(v.ring64[i]) for v in given) % 2**64 for i in range(N64)]
    assert accumulator.vector.ring32.tolist() == sum32
    assert accumulator.vector.ring64.tolist() == sum64
    assert accumulator.n_added == 3


@pytest.mark.parametrize("change", [-1, -8, 1, 8])
def test_accumulator_refuses_a_vector_of_another_length_and_is_then_unusable(change: int) -> None:
    data = vectors(1)[0].to_bytes()
    wrong = data[:change] if change < 0 else data + bytes(change)
    accumulator = RingAccumulator(n_ring32=N32, n_ring64=N64)
    with pytest.raises(VectorLengthError):
        accumulator.add(cut(wrong, 100))
    with pytest.raises(VectorLengthError):
        _ = accumulator.vector


def test_accumulator_reads_each_chunk_before_the_next_is_made() -> None:
    data = vectors(1)[0].to_bytes()

    def stream():  # noqa: ANN202 # a generator of views of one buffer
        buffer = bytearray(96)
        for part in cut(data, 96):
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]

    accumulator = RingAccumulator(n_ring32=N32, n_ring64=N64)
    accumulator.add(stream())
    assert accumulator.vector.to_bytes() == data


@pytest.mark.parametrize("n_ranges", [1, 5])
def test_masks_removed_by_ranges_leave_the_sum(n_ranges: int) -> None:
    plain = vectors(1)[0]
    masked = plain.copy()
    apply_masks(masked, [mask_term(b"k" * 32, MaskSign.ADD), mask_term(b"m" * 32, MaskSign.SUBTRACT)])
    assert not masked.equals(plain)
    accumulator = RingAccumulator(n_ring32=N32, n_ring64=N64)
    accumulator.add([masked.to_bytes()])
    terms = [mask_term(b"k" * 32, MaskSign.SUBTRACT), mask_term(b"m" * 32, MaskSign.ADD)]
    step = -(-plain.n_bytes // n_ranges)
    for start in range(0, plain.n_bytes, step):
        accumulator.remove_masks(terms, start_byte=start, stop_byte=min(start + step, plain.n_bytes))
    assert accumulator.vector.equals(plain)


def test_mask_removals_cover_the_vector_once() -> None:
    plain = vectors(1)[0]
    accumulator = RingAccumulator(n_ring32=N32, n_ring64=N64)
    accumulator.add([plain.to_bytes()])
    for sign in (MaskSign.ADD, MaskSign.SUBTRACT):
        for piece in accumulator.mask_removals([mask_term(b"z" * 32, sign)], 4):
            piece()
    assert accumulator.vector.equals(plain)
