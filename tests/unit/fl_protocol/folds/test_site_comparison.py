"""How many sites an adapter makes worse: from three hospitals' losses by hand, and against trainers that lie."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.codec.errors import ClipExceededError, ImplausibleSumError
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import RawPayloadInvalidError, RoundReport
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.payload_layout import SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.run_specs import resolved_run_spec, run_spec_document

LAYOUT = AdapterLayout(kind="lora", tensors=(TensorSpec(name="t", shape=(2, 2)),), peft_config={})
STATE = PublicState(version=3, adapter={"t": np.zeros((2, 2), np.float32)})
METRICS = ["loss", "sites-made-worse"]
MOST_UNITS = 64 * 512

Losses = tuple[int, float, float]
"""Of one site: units, the summed loss under adapter v0, and that under the adapter now."""


def spec_of(algorithm: str = "fedavg-lora") -> RunSpec:
    changes = {"evaluation.metrics": METRICS, "evaluation.max_records": 64, "local.max_length": 512}
    return resolved_run_spec({**changes, "aggregation.algorithm": algorithm})


def raw_of(
    losses: Losses, kind: RoundKind = RoundKind.EVALUATE, algorithm: str = "fedavg-lora"
) -> dict[str, np.ndarray]:
    n_units, then, now = losses
    raw = {
        "eval_loss_sum": np.array([now], np.float64),
        "eval_tokens": np.array([n_units], np.int64),
        "eval_records": np.array([min(n_units, 4)], np.int64),
        "initial_loss_sum": np.array([then], np.float64),
        "initial_tokens": np.array([n_units], np.int64),
    }
    if kind is RoundKind.TRAIN:
        raw |= {
            "adapter_update": np.array([0.5, -0.5, 0.25, 0], np.float32),
            "train_loss_sum": np.array([12.0]),
            "train_tokens": np.array([6], np.int64),
        }
        if algorithm == "fedmed":
            raw |= {"layer_distance": np.array([0.5]), "is_attentive": np.array([0], np.int64)}
    return raw


def encoded(raw: dict[str, np.ndarray], spec: RunSpec, kind: RoundKind = RoundKind.EVALUATE) -> RingVector:
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    values = algorithm.weigh(raw, n_records=100, spec=spec, layout=LAYOUT, kind=kind)
    return encode_payload(values, algorithm.segments(spec, LAYOUT, kind))


def report_of(
    sites: Sequence[Losses], *, algorithm: str = "fedavg-lora", kind: RoundKind = RoundKind.EVALUATE
) -> RoundReport:
    """What everybody reads of these sites, through the integers that are masked."""
    spec = spec_of(algorithm)
    vectors = [encoded(raw_of(site, kind, algorithm), spec, kind) for site in sites]
    total = RingVector.zeros(vectors[0].ring32.size, vectors[0].ring64.size)
    for vector in vectors:
        total.ring32[...] += vector.ring32
        total.ring64[...] += vector.ring64
    found = ALGORITHMS[algorithm]
    sums = decode_sums(total, found.segments(spec, LAYOUT, kind), n_sites=len(sites))
    return found.fold(sums, STATE, spec=spec, layout=LAYOUT, kind=kind, n_sites=len(sites)).report


@pytest.mark.parametrize("kind", [RoundKind.TRAIN, RoundKind.EVALUATE])
@pytest.mark.parametrize("algorithm", ["fedavg-lora", "fedmed"])
def test_mean_that_falls_hides_one_of_three_sites_and_the_count_shows_it(algorithm: str, kind: RoundKind) -> None:
    # Means: 3.0 to 2.5, 2.0 to 2.25, 2.0 to 2.0. Together (300 + 100 + 20) / 160 = 2.625 to (250 + 112.5 + 20) / 160.
    sites = [(100, 300.0, 250.0), (50, 100.0, 112.5), (10, 20.0, 20.0)]
    report = report_of(sites, algorithm=algorithm, kind=kind)
    assert report.eval_loss == pytest.approx(2.390625)
    assert report.metrics["sites-made-worse"] == 1.0
    assert report.metrics["sites-compared"] == 3.0


@pytest.mark.parametrize(
    ("more", "is_worse"), [(0.0, False), (1.0, False), (1.0 + 2**-16, True), (-5.0, False), (4096.0, True)]
)
def test_only_more_than_a_1024th_of_a_nat_a_unit_is_worse(more: float, is_worse: bool) -> None:
    # 1024 units: a margin of one nat in all.
    better = (1024, 2048.0, 1024.0)
    found = report_of([better, better, (1024, 2048.0, 2048.0 + more)]).metrics
    assert found["sites-made-worse"] == float(is_worse)


def test_nothing_is_said_where_nothing_was_evaluated() -> None:
    assert report_of([(0, 0.0, 0.0)] * 3).metrics == {}


def test_site_without_held_out_records_is_not_among_the_compared() -> None:
    found = report_of([(0, 0.0, 0.0), (8, 8.0, 16.0), (8, 8.0, 16.0)]).metrics
    assert (found["sites-made-worse"], found["sites-compared"]) == (2.0, 2.0)


# In sixteenths of a nat, so that the sums are exact in float64 and in the ring.
_SITE = st.tuples(st.integers(0, MOST_UNITS), st.integers(0, 1 << 20), st.integers(0, 1 << 20))


@given(sites=st.lists(_SITE, min_size=3, max_size=3))
def test_counts_are_those_of_exact_fractions(sites: list[tuple[int, int, int]]) -> None:
    # A loss is at most 64 nats a unit, and none where there is no unit.
    exact = [(n, Fraction(min(a, n * 1024), 16), Fraction(min(b, n * 1024), 16)) for n, a, b in sites]
    found = report_of([(n, float(then), float(now)) for n, then, now in exact]).metrics
    compared = [(n, then, now) for n, then, now in exact if n]
    worse = [1 for n, then, now in compared if now / n - then / n > Fraction(1, 1024)]
    if compared:
        assert (found["sites-compared"], found["sites-made-worse"]) == (len(compared), len(worse))
    else:
        assert found == {}


@pytest.mark.parametrize("flag", ["eval_made_worse", "eval_compared"])
@pytest.mark.parametrize("value", [2, -1, 1, 0])
def test_trainer_that_writes_a_flag_itself_is_refused(flag: str, value: int) -> None:
    raw = raw_of((8, 8.0, 8.0)) | {flag: np.array([value], np.int64)}
    with pytest.raises(RawPayloadInvalidError) as caught:
        encoded(raw, spec_of())
    assert caught.value.facts["segment"] == flag


@pytest.mark.parametrize("flag", ["eval_made_worse", "eval_compared"])
@pytest.mark.parametrize("value", [2, -1, 1 << 40])
def test_flag_that_is_not_0_or_1_cannot_be_encoded(flag: str, value: int) -> None:
    spec, algorithm = spec_of(), ALGORITHMS["fedavg-lora"]
    raw = raw_of((8, 8.0, 8.0))
    values = algorithm.weigh(raw, n_records=100, spec=spec, layout=LAYOUT, kind=RoundKind.EVALUATE)
    with pytest.raises(ClipExceededError) as caught:
        encode_payload(
            values | {flag: np.array([value], np.int64)}, algorithm.segments(spec, LAYOUT, RoundKind.EVALUATE)
        )
    assert caught.value.facts["segment"] == flag


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_loss_sum", np.nan),
        ("initial_loss_sum", np.inf),
        ("initial_loss_sum", -np.inf),
        ("initial_loss_sum", -0.5),
        ("eval_loss_sum", np.nan),
        ("eval_loss_sum", np.inf),
        ("initial_tokens", 7),
        ("initial_tokens", 9),
        ("initial_tokens", 0),
    ],
)
def test_losses_that_cannot_be_compared_are_refused(name: str, value: float) -> None:
    raw = raw_of((8, 8.0, 8.0))
    raw[name] = np.array([value], raw[name].dtype)
    with pytest.raises(RawPayloadInvalidError):
        encoded(raw, spec_of())


@pytest.mark.parametrize("name", ["initial_loss_sum", "initial_tokens"])
def test_trainer_that_leaves_the_initial_adapter_out_is_refused(name: str) -> None:
    raw = raw_of((8, 8.0, 8.0))
    del raw[name]
    with pytest.raises(RawPayloadInvalidError) as caught:
        encoded(raw, spec_of())
    assert caught.value.facts["segment"] == name


def test_loss_of_the_initial_adapter_is_no_segment_of_the_sum() -> None:
    plain = resolved_run_spec({"evaluation.max_records": 64, "local.max_length": 512})
    for kind in RoundKind:
        added = ALGORITHMS["fedavg-lora"].segments(spec_of(), LAYOUT, kind).segments
        before = {s.name for s in ALGORITHMS["fedavg-lora"].segments(plain, LAYOUT, kind).segments}
        found = {s.name: (s.kind, s.length, s.bound) for s in added if s.name not in before}
        flag = (SegmentKind.COUNT, 1, 1.0)
        assert found == {"eval_compared": flag, "eval_made_worse": flag}


@pytest.mark.parametrize(("compared", "worse"), [(2, 3), (4, 4), (3, -1), (-1, -1)])
def test_sum_that_no_honest_sites_sent_is_refused(compared: int, worse: int) -> None:
    spec, algorithm = spec_of(), ALGORITHMS["fedavg-lora"]
    layout = algorithm.segments(spec, LAYOUT, RoundKind.EVALUATE)
    sums = dict(decode_sums(encoded(raw_of((8, 8.0, 8.0)), spec), layout, n_sites=1))
    sums |= {"eval_compared": np.array([compared]), "eval_made_worse": np.array([worse])}
    with pytest.raises(ImplausibleSumError):
        algorithm.fold(sums, STATE, spec=spec, layout=LAYOUT, kind=RoundKind.EVALUATE, n_sites=3)


def test_run_that_counts_codes_has_no_loss_to_compare() -> None:
    document = run_spec_document(
        {
            "task": {"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2},
            "adapter": {"kind": "published-codes"},
            "aggregation.algorithm": "thresholded-counts",
            "rounds": 1,
            "evaluation.metrics": ["sites-made-worse"],
        }
    )
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(document)
    assert [fault.path for fault in caught.value.faults] == ["evaluation.metrics[0]"]
