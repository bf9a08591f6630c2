from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from fl_protocol.codec.clipping import clip_l2, l2_norm
from fl_protocol.codec.errors import (
    ClipExceededError,
    ImplausibleSumError,
    MissingSegmentError,
    NonFiniteUpdateError,
    SegmentShapeError,
    SumSpentError,
)
from fl_protocol.codec.fixed_point import encode_payload, fixed_point_scale, quantisation_step, sum_error_bound
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import UpdateSum, decode_sums, read_sums
from fl_protocol.spec.payload_layout import CapacityError, PayloadLayout, Segment, SegmentKind, UnknownSegmentError


def update_segment(bound: float = 10.0, length: int = 4) -> Segment:
    return Segment(name="update", kind=SegmentKind.UPDATE, length=length, bound=bound)


def layout(*, bound: float = 10.0, length: int = 4, max_sites: int = 3) -> PayloadLayout:
    return PayloadLayout(
        segments=(
            update_segment(bound, length),
            Segment(name="weight", kind=SegmentKind.COUNT, length=1, bound=1000.0),
            Segment(name="loss", kind=SegmentKind.SCALAR, length=2, bound=100.0, resolution=0.25),
        ),
        max_sites=max_sites,
    )


def payload(**changes: object) -> dict[str, np.ndarray]:
    values: dict[str, object] = {
        "update": np.array([0.0, 10.0, -10.0, 0.5], np.float32),
        "weight": np.array([7], np.int64),
        "loss": np.array([1.25, -3.5]),
    }
    return values | changes


BOUNDS = [1e-6, 0.1, 1.0, 3.0, 10.0, 16777217.0, 1e6, float(np.float32(0.1)), math.pi]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("max_sites", [1, 2, 3, 10, 200, 65535])
def test_scale_keeps_the_largest_admitted_value_within_the_ring(bound: float, max_sites: int) -> None:
    fixed = fixed_point_scale(update_segment(bound), max_sites)
    top = np.float32(bound)
    if float(top) > bound:
        top = np.nextafter(top, np.float32(0))
    largest = int(np.rint(top * fixed.scale))
    assert largest <= fixed.q_max
    assert max_sites * fixed.q_max <= 2**31 - 1
    # And the scale is not needlessly small: within a few float32 steps of the ideal.
    assert Fraction(float(fixed.scale)) >= Fraction((2**31 - 1) // max_sites) / Fraction(bound) * (
        1 - Fraction(1, 2**20)
    )


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("max_sites", [1, 3, 200])
def test_sum_of_all_sites_at_the_bound_does_not_wrap(bound: float, max_sites: int) -> None:
    top = np.float32(bound)
    if float(top) > bound:
        top = np.nextafter(top, np.float32(0))
    agreed = PayloadLayout(segments=(update_segment(bound, 2),), max_sites=max_sites)
    vector = encode_payload({"update": np.array([top, -top], np.float32)}, agreed)
    exact = max_sites * int(vector.ring32.view(np.int32)[0])
    assert exact < 2**31
    summed = RingVector(
        ring32=(vector.ring32.astype(np.uint64) * max_sites % 2**32).astype(np.uint32), ring64=vector.ring64
    )
    decoded = decode_sums(summed, agreed)["update"]
    assert decoded[0] == -decoded[1]
    assert abs(decoded[0] - max_sites * float(top)) <= sum_error_bound(agreed, "update", max_sites)


@pytest.mark.parametrize("bound", [1e-42, 1e300])
def test_scale_of_a_bound_beyond_float32_is_refused(bound: float) -> None:
    with pytest.raises(CapacityError):
        fixed_point_scale(update_segment(bound), 3)


def test_encoding_follows_the_stated_float32_order() -> None:
    values = np.random.default_rng(1).normal(0, 3, 5000).clip(-10, 10).astype(np.float32)
    agreed = PayloadLayout(segments=(update_segment(10.0, 5000),), max_sites=3)
    scale = fixed_point_scale(agreed.segments[0], 3).scale
    expected = [round(float(np.float32(float(x) * float(scale)))) % 2**32 for x in values]
    assert encode_payload({"update": values}, agreed).ring32.tolist() == expected


def test_encoding_over_several_chunks_is_that_of_one() -> None:
    length = 3 * 65536 + 17
    values = np.random.default_rng(2).uniform(-1, 1, length).astype(np.float32)
    whole = PayloadLayout(segments=(update_segment(1.0, length),), max_sites=5)
    vector = encode_payload({"update": values}, whole)
    piece = PayloadLayout(segments=(update_segment(1.0, 17),), max_sites=5)
    tail = encode_payload({"update": values[-17:].copy()}, piece)
    assert vector.ring32[-17:].tolist() == tail.ring32.tolist()
    assert np.abs(decode_sums(vector, whole)["update"] - values).max() <= sum_error_bound(whole, "update", 1)


def test_encoding_of_a_payload_lays_segments_out_by_ring() -> None:
    vector = encode_payload(payload(), layout())
    assert vector.ring32.shape == (4,)
    assert vector.ring64.view(np.int64).tolist() == [7, 5, -14]


def test_encoding_writes_into_the_given_vector() -> None:
    out = RingVector.zeros(4, 3)
    assert encode_payload(payload(), layout(), out=out) is out
    assert out.equals(encode_payload(payload(), layout()))
    with pytest.raises(SegmentShapeError):
        encode_payload(payload(), layout(), out=RingVector.zeros(5, 3))


def test_encoding_into_a_vector_needs_no_second_one() -> None:
    length = 1 << 22
    agreed = PayloadLayout(segments=(update_segment(1.0, length),), max_sites=3)
    values = {"update": np.full(length, 0.5, np.float32)}
    out = RingVector.zeros(length, 0)
    tracemalloc.start()
    try:
        encode_payload(values, agreed, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A chunk is 256 KiB; the vector would be 16 MiB.
    assert peak < 1 << 20


def test_encoding_does_not_change_its_input() -> None:
    values = payload()
    before = {name: array.copy() for name, array in values.items()}
    encode_payload(values, layout())
    assert all(np.array_equal(values[name], before[name]) for name in before)


def test_scalar_is_rounded_half_to_even_exactly() -> None:
    agreed = PayloadLayout(
        segments=(Segment(name="s", kind=SegmentKind.SCALAR, length=6, bound=100.0, resolution=0.25),), max_sites=3
    )
    values = np.array([0.125, 0.375, -0.125, -0.375, 0.12500000000000003, 100.0])
    assert encode_payload({"s": values}, agreed).ring64.view(np.int64).tolist() == [0, 2, 0, -2, 1, 400]


def test_scalar_with_a_resolution_that_is_no_power_of_two_is_exact() -> None:
    agreed = PayloadLayout(
        segments=(Segment(name="s", kind=SegmentKind.SCALAR, length=1, bound=1e12, resolution=0.001),), max_sites=3
    )
    value = 123456789012.3456
    expected = round(Fraction(value) / Fraction(0.001))
    assert encode_payload({"s": np.array([value])}, agreed).ring64.view(np.int64).tolist() == [expected]


def test_decoding_gives_real_units_and_types() -> None:
    sums = decode_sums(encode_payload(payload(), layout()), layout())
    assert {name: array.dtype.name for name, array in sums.items()} == {
        "update": "float64",
        "weight": "int64",
        "loss": "float64",
    }
    assert sums["weight"].tolist() == [7]
    assert sums["loss"].tolist() == [1.25, -3.5]
    assert np.abs(sums["update"] - payload()["update"]).max() <= sum_error_bound(layout(), "update", 1)


def test_decoded_sums_are_not_views_of_the_vector() -> None:
    vector = encode_payload(payload(), layout())
    sums = decode_sums(vector, layout())
    vector.ring64[...] = 0
    assert sums["weight"].tolist() == [7]


def test_unknown_segment_is_refused_by_name() -> None:
    with pytest.raises(UnknownSegmentError) as caught:
        encode_payload(payload(extra=np.zeros(1, np.float32)), layout())
    assert caught.value.facts["segment"] == "extra"
    with pytest.raises(UnknownSegmentError):
        quantisation_step(layout(), "extra")


@pytest.mark.parametrize("name", ["update", "weight", "loss"])
def test_missing_segment_is_refused_by_name(name: str) -> None:
    values = payload()
    del values[name]
    with pytest.raises(MissingSegmentError) as caught:
        encode_payload(values, layout())
    assert caught.value.facts["segment"] == name


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("update", np.zeros(3, np.float32)),
        ("update", np.zeros((2, 2), np.float32)),
        ("update", np.zeros(4, np.float64)),
        ("weight", np.zeros(1, np.int32)),
        ("weight", np.array(7, np.int64)),
        ("loss", np.zeros(2, np.float32)),
    ],
)
def test_segment_of_another_shape_or_dtype_is_refused(name: str, array: np.ndarray) -> None:
    with pytest.raises(SegmentShapeError) as caught:
        encode_payload(payload(**{name: array}), layout())
    assert caught.value.facts["segment"] == name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 65536, 70000])
def test_value_that_is_not_finite_is_refused_with_its_place(bad: float, place: int) -> None:
    values = np.zeros(70001, np.float32)
    values[place] = bad
    agreed = PayloadLayout(segments=(update_segment(1.0, 70001),), max_sites=3)
    with pytest.raises(NonFiniteUpdateError) as caught:
        encode_payload({"update": values}, agreed)
    assert caught.value.facts == {"segment": "update", "index": place}


def test_scalar_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteUpdateError):
        encode_payload(payload(loss=np.array([0.0, np.nan])), layout())


@pytest.mark.parametrize("sign", [1, -1])
def test_value_one_float_above_its_bound_is_refused_not_clamped(sign: int) -> None:
    over = np.nextafter(np.float32(10.0), np.float32(11.0)) * sign
    values = np.array([0, 0, over, 0], np.float32)
    with pytest.raises(ClipExceededError) as caught:
        encode_payload(payload(update=values), layout())
    assert caught.value.facts["segment"] == "update"
    assert caught.value.facts["index"] == 2


@pytest.mark.parametrize("weight", [-1, 1001, 2**62])
def test_count_outside_its_bound_is_refused(weight: int) -> None:
    with pytest.raises(ClipExceededError):
        encode_payload(payload(weight=np.array([weight], np.int64)), layout())


@pytest.mark.parametrize("loss", [100.1, -100.1])
def test_scalar_over_its_bound_is_refused(loss: float) -> None:
    with pytest.raises(ClipExceededError):
        encode_payload(payload(loss=np.array([0.0, loss])), layout())


def test_error_shows_no_value_of_the_update() -> None:
    values = np.array([0, 0, 123.456, 0], np.float32)
    with pytest.raises(ClipExceededError) as caught:
        encode_payload(payload(update=values), layout())
    assert "123.4" not in str(caught.value)


def test_decoding_a_sum_over_the_counted_sites_bound_is_refused() -> None:
    three = encode_payload(payload(), layout())
    total = RingVector(ring32=three.ring32 * np.uint32(3), ring64=three.ring64 * np.uint64(3))
    assert decode_sums(total, layout(), n_sites=3)["weight"].tolist() == [21]
    with pytest.raises(ImplausibleSumError) as caught:
        decode_sums(total, layout(), n_sites=2)
    assert caught.value.facts["segment"] == "update"


@pytest.mark.parametrize(("place", "value"), [(0, -1), (0, 3001), (1, 1201), (1, -1201)])
def test_decoding_an_implausible_count_or_scalar_is_refused(place: int, value: int) -> None:
    vector = RingVector.zeros(4, 3)
    vector.ring64.view(np.int64)[place] = value
    with pytest.raises(ImplausibleSumError):
        decode_sums(vector, layout())


@pytest.mark.parametrize("n_sites", [0, 4, -1])
def test_decoding_for_an_impossible_number_of_sites_is_refused(n_sites: int) -> None:
    with pytest.raises(ImplausibleSumError):
        decode_sums(RingVector.zeros(4, 3), layout(), n_sites=n_sites)


def test_decoding_a_vector_of_another_layout_is_refused() -> None:
    with pytest.raises(SegmentShapeError):
        decode_sums(RingVector.zeros(4, 2), layout())


def test_short_update_is_not_clipped_nor_copied() -> None:
    update = np.array([3.0, 4.0], np.float32)
    clipped, was_clipped = clip_l2(update, 5.0)
    assert clipped is update
    assert not was_clipped


@pytest.mark.parametrize("clip_norm", [1e-6, 0.1, 1.0, 4.999999, math.pi])
def test_long_update_is_scaled_to_the_norm_and_never_above_it(clip_norm: float) -> None:
    update = np.random.default_rng(3).normal(0, 1, 200_001).astype(np.float32)
    clipped, was_clipped = clip_l2(update, clip_norm)
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in clipped))
    assert was_clipped
    assert clip_norm * (1 - 1e-6) <= exact <= clip_norm
    expected = update.astype(np.float64) * (clip_norm / math.sqrt(math.fsum(float(x) ** 2 for x in update)))
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.1, 1e-6, math.pi, 1e6])
def test_clipped_single_element_fits_its_bound(clip_norm: float) -> None:
    agreed = PayloadLayout(segments=(update_segment(clip_norm, 1),), max_sites=3)
    clipped, _ = clip_l2(np.array([1e30], np.float32), clip_norm)
    encode_payload({"update": clipped}, agreed)
    assert float(clipped[0]) <= clip_norm


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_of_a_non_finite_update_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteUpdateError):
        clip_l2(np.array([0.0, bad], np.float32), 1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_clipping_to_no_norm_is_refused(clip_norm: float) -> None:
    with pytest.raises(ClipExceededError):
        clip_l2(np.ones(2, np.float32), clip_norm)


@pytest.mark.parametrize("update", [np.ones(2), np.ones((2, 2), np.float32)])
def test_clipping_of_another_array_is_refused(update: np.ndarray) -> None:
    with pytest.raises(SegmentShapeError):
        clip_l2(update, 1.0)


def test_norm_of_the_largest_floats_does_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    assert l2_norm(np.array([largest, largest], np.float32)) == pytest.approx(float(largest) * math.sqrt(2), rel=1e-15)


def sum_of_length(length: int) -> tuple[PayloadLayout, RingVector]:
    """A layout of one update, and any sum that its three sites can have."""
    agreed = PayloadLayout(segments=(update_segment(length=length),), max_sites=3)
    limit = 3 * update_segment(length=length).max_integer(3)
    integers = np.random.default_rng(length).integers(-limit, limit, length, endpoint=True, dtype=np.int32)
    return agreed, RingVector(ring32=integers.view(np.uint32), ring64=np.zeros(0, np.uint64))


@pytest.mark.parametrize("is_given_up", [False, True])
@pytest.mark.parametrize("length", [1, 65_535, 65_536, 65_537, 131_072, 131_073])
def test_scaled_sum_is_each_element_divided_multiplied_and_rounded_once(length: int, is_given_up: bool) -> None:
    agreed, vector = sum_of_length(length)
    scale = np.float64(fixed_point_scale(agreed.segments[0], 3).scale)
    # Independent of chunks: the whole vector at once, each step of the order that the fold states.
    expected = ((vector.ring32.view(np.int32).astype(np.float64) / scale) * 1.7).astype(np.float32)
    total = read_sums(vector, agreed, is_given_up=is_given_up)["update"]
    assert isinstance(total, UpdateSum)
    scaled = total.scaled(1.7)
    assert scaled.dtype == np.float32
    assert scaled.tobytes() == expected.tobytes()
    assert np.shares_memory(scaled, vector.ring32) is is_given_up


def test_sum_that_was_given_up_is_used_once() -> None:
    agreed, vector = sum_of_length(4)
    total = read_sums(vector, agreed, is_given_up=True)["update"]
    assert isinstance(total, UpdateSum)
    total.scaled(1.0)
    with pytest.raises(SumSpentError):
        total.scaled(1.0)
    with pytest.raises(SumSpentError):
        total[:]


def test_sum_that_is_kept_is_the_same_every_time() -> None:
    agreed, vector = sum_of_length(70_000)
    before = vector.to_bytes()
    total = read_sums(vector, agreed)["update"]
    assert isinstance(total, UpdateSum)
    assert total.scaled(0.5).tobytes() == total.scaled(0.5).tobytes()
    assert vector.to_bytes() == before


def test_scaling_a_sum_that_was_given_up_needs_no_second_vector() -> None:
    agreed, vector = sum_of_length(2_000_000)
    total = read_sums(vector, agreed, is_given_up=True)["update"]
    assert isinstance(total, UpdateSum)
    tracemalloc.start()
    try:
        total.scaled(0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One chunk of float64 is 512 KiB; a second vector were 8 MB.
    assert peak < 1_000_000


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 200_000])
def test_norm_over_several_chunks_is_the_sum_of_exact_squares(length: int) -> None:
    update = np.random.default_rng(length).normal(0, 1, length).astype(np.float32)
    exact = math.sqrt(math.fsum((update.astype(np.float64) ** 2).tolist()))
    # A pairwise sum of n squares of one sign is off by less than n units in the last place, and far less in fact.
    assert abs(l2_norm(update) - exact) <= 1e-12 * exact
