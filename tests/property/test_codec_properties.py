from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_protocol.codec.clipping import clip_l2
from fl_protocol.codec.fixed_point import encode_payload, fixed_point_scale, sum_error_bound
from fl_protocol.codec.merkle import (
    consistency_path,
    inclusion_path,
    is_consistent,
    is_included,
    leaf_hash,
    root_from_leaf_hashes,
)
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import decode_sums
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind

BOUNDS = st.floats(1e-6, 1e6)
FLOAT32 = np.finfo(np.float32)


def within(bound: float) -> float:
    """The largest float32 that is not above the bound."""
    top = np.float32(bound)
    return float(np.nextafter(top, np.float32(0)) if float(top) > bound else top)


@given(bound=BOUNDS, max_sites=st.integers(1, 65535))
def test_scale_of_any_bound_fits_the_ring(bound: float, max_sites: int) -> None:
    segment = Segment(name="u", kind=SegmentKind.UPDATE, length=1, bound=bound)
    fixed = fixed_point_scale(segment, max_sites)
    # Recomputed with exact fractions: the float32 product is the exact one, rounded to nearest.
    product = np.float32(float(Fraction(within(bound)) * Fraction(float(fixed.scale))))
    assert int(np.rint(product)) * max_sites <= 2**31 - 1


@settings(deadline=None)
@given(data=st.data(), bound=BOUNDS, n_sites=st.integers(1, 12), length=st.integers(1, 40))
def test_sum_of_any_bounded_vectors_is_the_real_sum_within_the_stated_bound(
    data: st.DataObject, bound: float, n_sites: int, length: int
) -> None:
    top = within(bound)
    floats = st.floats(-top, top, width=32, allow_subnormal=False)
    vectors = [data.draw(hnp.arrays(np.float32, length, elements=floats)) for _ in range(n_sites)]
    counts = data.draw(st.lists(st.integers(0, 2**40), min_size=n_sites, max_size=n_sites))
    scalars = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=n_sites, max_size=n_sites))
    layout = PayloadLayout(
        segments=(
            Segment(name="u", kind=SegmentKind.UPDATE, length=length, bound=bound),
            Segment(name="c", kind=SegmentKind.COUNT, length=1, bound=2.0**40),
            Segment(name="s", kind=SegmentKind.SCALAR, length=1, bound=1e6, resolution=2.0**-16),
        ),
        max_sites=n_sites,
    )
    total = RingVector.zeros(length, 2)
    for vector, count, scalar in zip(vectors, counts, scalars, strict=True):
        encoded = encode_payload({"u": vector, "c": np.array([count]), "s": np.array([scalar])}, layout)
        total.ring32[...] += encoded.ring32
        total.ring64[...] += encoded.ring64
    sums = decode_sums(total, layout, n_sites=n_sites)
    for place in range(length):
        exact = sum((Fraction(float(vector[place])) for vector in vectors), Fraction(0))
        assert abs(Fraction(float(sums["u"][place])) - exact) <= Fraction(sum_error_bound(layout, "u", n_sites))
    assert int(sums["c"][0]) == sum(counts)
    exact = sum((Fraction(scalar) for scalar in scalars), Fraction(0))
    assert abs(Fraction(float(sums["s"][0])) - exact) <= Fraction(sum_error_bound(layout, "s", n_sites))


@given(
    update=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    clip_norm=BOUNDS,
)
def test_clipped_update_is_never_longer_than_the_norm_nor_over_it_anywhere(
    update: np.ndarray, clip_norm: float
) -> None:
    clipped, was_clipped = clip_l2(update, clip_norm)
    exact = sum((Fraction(float(x)) ** 2 for x in clipped), Fraction(0))
    if was_clipped:
        assert exact <= Fraction(clip_norm) ** 2
        assert math.sqrt(exact) >= clip_norm * (1 - 1e-5)
    else:
        assert np.array_equal(clipped, update)
    layout = PayloadLayout(
        segments=(Segment(name="u", kind=SegmentKind.UPDATE, length=update.size, bound=clip_norm),), max_sites=3
    )
    encode_payload({"u": clipped}, layout)


@given(n_leaves=st.integers(1, 80), data=st.data())
def test_merkle_proofs_of_any_tree_verify_and_of_another_leaf_do_not(n_leaves: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(number.to_bytes(2, "big")) for number in range(n_leaves)]
    root = root_from_leaf_hashes(leaves)
    index = data.draw(st.integers(0, n_leaves - 1))
    path = inclusion_path(leaves, index)
    assert is_included(leaves[index], index=index, size=n_leaves, path=path, root=root)
    assert not is_included(leaf_hash(b"another"), index=index, size=n_leaves, path=path, root=root)
    old = data.draw(st.integers(0, n_leaves))
    old_root = root_from_leaf_hashes(leaves[:old])
    proof = consistency_path(leaves, old)
    assert is_consistent(old_size=old, old_root=old_root, new_size=n_leaves, new_root=root, path=proof)
    if old > 0:
        other = root_from_leaf_hashes([*leaves[: old - 1], leaf_hash(b"another")])
        assert not is_consistent(old_size=old, old_root=other, new_size=n_leaves, new_root=root, path=proof)
