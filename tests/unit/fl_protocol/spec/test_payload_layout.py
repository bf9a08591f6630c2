from __future__ import annotations

import hashlib
import json

import pytest

from fl_protocol.spec.payload_layout import (
    CapacityError,
    LayoutInvalidError,
    PayloadLayout,
    Ring,
    Segment,
    SegmentKind,
    UnknownSegmentError,
)

UPDATE = Segment(name="update", kind=SegmentKind.UPDATE, length=5, bound=10.0)
WEIGHT = Segment(name="weight", kind=SegmentKind.COUNT, length=1, bound=10_000)
LOSS = Segment(name="loss", kind=SegmentKind.SCALAR, length=2, bound=1e6, resolution=1e-6)
OTHER = Segment(name="other", kind=SegmentKind.UPDATE, length=3, bound=1.0)


def layout_of(*segments: Segment, max_sites: int = 200) -> PayloadLayout:
    return PayloadLayout(segments=segments, max_sites=max_sites)


def test_layout_slices_are_within_the_segment_s_own_ring_in_declared_order() -> None:
    layout = layout_of(WEIGHT, UPDATE, LOSS, OTHER)
    assert (layout.n_ring32, layout.n_ring64, layout.n_bytes) == (8, 3, 4 * 8 + 8 * 3)
    assert layout.slice_of("update") == slice(0, 5)
    assert layout.slice_of("other") == slice(5, 8)
    assert layout.slice_of("weight") == slice(0, 1)
    assert layout.slice_of("loss") == slice(1, 3)
    assert layout.segment("loss").ring is Ring.RING64


@pytest.mark.parametrize("max_sites", [1, 2, 3, 10, 200, 65535])
def test_layout_largest_integers_of_all_sites_never_wrap(max_sites: int) -> None:
    layout = layout_of(UPDATE, WEIGHT, LOSS, max_sites=max_sites)
    assert max_sites * layout.max_integer("update") <= 2**31 - 1 < max_sites * (layout.max_integer("update") + 1)
    assert layout.max_integer("weight") == 10_000
    assert layout.max_integer("loss") in (10**12, 10**12 + 1)
    assert max_sites * layout.max_integer("loss") <= 2**63 - 1


@pytest.mark.parametrize(
    "segment",
    [
        Segment(name="count", kind=SegmentKind.COUNT, length=1, bound=2**62),
        Segment(name="count", kind=SegmentKind.COUNT, length=1, bound=2**54),
        Segment(name="scalar", kind=SegmentKind.SCALAR, length=1, bound=1e300, resolution=1e-300),
        Segment(name="scalar", kind=SegmentKind.SCALAR, length=1, bound=1e12, resolution=1e-6),
    ],
)
def test_layout_sum_that_could_wrap_or_be_inexact_is_refused(segment: Segment) -> None:
    with pytest.raises(CapacityError):
        layout_of(segment, max_sites=200)


def test_layout_document_round_trips_and_digest_is_of_its_canonical_json() -> None:
    layout = layout_of(UPDATE, WEIGHT)
    assert PayloadLayout.from_document(json.loads(json.dumps(layout.to_document()))) == layout
    canonical = (
        '{"max_sites":200,"segments":['
        '{"bound":10,"kind":"update","length":5,"name":"update","resolution":1},'
        '{"bound":10000,"kind":"count","length":1,"name":"weight","resolution":1}]}'
    )
    assert layout.digest() == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Upper"},
        {"length": 0},
        {"bound": 0.0},
        {"bound": float("nan")},
        {"bound": float("inf")},
        {"resolution": 0.5},
        {"kind": SegmentKind.COUNT, "bound": 1.5},
        {"kind": SegmentKind.SCALAR, "resolution": 0.0},
    ],
)
def test_segment_value_that_is_not_admitted_is_refused(fields: dict) -> None:
    with pytest.raises(LayoutInvalidError):
        Segment(**({"name": "x", "kind": SegmentKind.UPDATE, "length": 1, "bound": 1.0} | fields))


def test_layout_without_segments_with_twins_or_without_sites_is_refused() -> None:
    for segments, max_sites in (((), 3), ((UPDATE, UPDATE), 3), ((UPDATE,), 0), ((UPDATE,), 1 << 16)):
        with pytest.raises(LayoutInvalidError):
            PayloadLayout(segments=segments, max_sites=max_sites)


def test_layout_unknown_segment_is_refused() -> None:
    with pytest.raises(UnknownSegmentError):
        layout_of(UPDATE).slice_of("weight")


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"segments": {}},
        {"segments": [1]},
        {"max_sites": True},
        {"segments": [{"name": "x", "kind": "update", "length": 1, "bound": 1.0}]},
        {"segments": [{"name": "x", "kind": "odd", "length": 1, "bound": 1.0, "resolution": 1.0}]},
        {"segments": [{"name": 1, "kind": "update", "length": 1, "bound": 1.0, "resolution": 1.0}]},
        {"segments": [{"name": "x", "kind": "update", "length": 1.0, "bound": 1.0, "resolution": 1.0}]},
        {"segments": [{"name": "x", "kind": "update", "length": 1, "bound": "1", "resolution": 1.0}]},
    ],
)
def test_layout_document_with_a_fault_is_refused(change: dict) -> None:
    with pytest.raises(LayoutInvalidError):
        PayloadLayout.from_document(layout_of(UPDATE).to_document() | change)
