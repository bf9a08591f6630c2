"""Which codes a vocabulary run publishes: against an oracle from the definition, and through the whole secure sum."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import Publishes, RawPayloadInvalidError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, RunSpecFaultsError, parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.code_list_layout import code_list_layout
from fl_protocol.tensors.errors import AdapterLayoutSparseError
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.testing.federation import Federation
from fl_protocol.testing.run_specs import run_spec_document

ALGORITHM = ALGORITHMS["thresholded-counts"]
CAP = 50


def spec_of(threshold: int = 5, min_sites: int = 2, site_minimum: int = 1, **changes: object) -> RunSpec:
    task = {
        "kind": "concept-vocabulary",
        "threshold": threshold,
        "min_sites": min_sites,
        "site_minimum": site_minimum,
    }
    whole: dict[str, object] = {
        "task": task,
        "adapter": {"kind": "published-codes"},
        "aggregation.algorithm": "thresholded-counts",
        "rounds": 1,
        "privacy.weight_cap": CAP,
    }
    return parse_run_spec(run_spec_document({**whole, **changes}))


def layout_of(n_codes: int) -> AdapterLayout:
    return code_list_layout(n_codes, kind="published-codes", config={})


def nothing(n_codes: int) -> PublicState:
    return PublicState(version=0, adapter={"published": np.zeros(n_codes, dtype=np.float32)})


def weigh(counts: list[int], spec: RunSpec, n_records: int = 9) -> dict[str, NDArray[Any]]:
    raw = {"code_patients": np.array(counts, dtype=np.int64)}
    return ALGORITHM.weigh(raw, n_records=n_records, spec=spec, layout=layout_of(len(counts)), kind=RoundKind.TRAIN)


def fold(payloads: list[dict[str, NDArray[Any]]], spec: RunSpec, n_codes: int) -> tuple[list[float], Any]:
    sums = {name: sum(payload[name] for payload in payloads) for name in payloads[0]}
    folded = ALGORITHM.fold(
        sums, nothing(n_codes), spec=spec, layout=layout_of(n_codes), kind=RoundKind.TRAIN, n_sites=len(payloads)
    )
    return folded.state.adapter["published"].tolist(), folded


def test_site_leaves_small_counts_out_and_caps_large_ones_before_masking() -> None:
    payload = weigh([0, 1, 4, 5, 51], spec_of(site_minimum=5), n_records=200)
    assert payload["code_patients"].tolist() == [0, 0, 0, 5, CAP]
    assert payload["code_sites"].tolist() == [0, 0, 0, 1, 1]
    assert payload["weight"].tolist() == [CAP]


def test_fold_publishes_codes_that_meet_both_bounds_and_nothing_of_the_counts() -> None:
    spec = spec_of(threshold=5, min_sites=2)
    # Five patients at one site; four at two; five at two; ten at three.
    published, folded = fold([weigh([5, 2, 4, 4], spec), weigh([0, 2, 1, 4], spec), weigh([0, 0, 0, 2], spec)], spec, 4)
    assert published == [0.0, 0.0, 1.0, 1.0]
    assert folded.state.version == 1
    assert set(np.unique(folded.state.adapter["published"])) <= {0.0, 1.0}
    assert asdict(folded.report) == {
        "train_loss": None,
        "eval_loss": None,
        "n_records": 27,
        "n_eval_records": 0,
        "n_clipped": 0,
        "update_norm": 0.0,
        "metrics": {"published_codes": 2.0},
    }
    assert ALGORITHM.publishes is Publishes.FOLD


@settings(deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 70), min_size=4, max_size=4), min_size=3, max_size=3),
    threshold=st.integers(1, 90),
    min_sites=st.integers(2, 3),
    site_minimum=st.integers(1, 60),
)
def test_fold_of_the_secure_sum_equals_the_definition(
    counts: list[list[int]], threshold: int, min_sites: int, site_minimum: int
) -> None:
    spec = spec_of(threshold, min_sites, site_minimum)
    sites = tuple(SiteId(name) for name in spec.cohort.names)
    layout = ALGORITHM.segments(spec, layout_of(4), RoundKind.TRAIN)
    vectors = {site: encode_payload(weigh(mine, spec), layout) for site, mine in zip(sites, counts, strict=True)}
    outcome = Federation(sites, layout).exchange(vectors)
    sums = decode_sums(outcome.total, layout, n_sites=3)
    folded = ALGORITHM.fold(sums, nothing(4), spec=spec, layout=layout_of(4), kind=RoundKind.TRAIN, n_sites=3)
    expected = []
    for code in range(4):
        told = [min(mine[code], CAP) for mine in counts if mine[code] >= site_minimum]
        expected.append(float(sum(told) >= threshold and len(told) >= min_sites))
    assert folded.state.adapter["published"].tolist() == expected


def what_the_others_have(counts: list[list[int]], spec: RunSpec) -> NDArray[Any]:
    """The attack: the first site takes its own part out of the sum that it fetched to compute the fold."""
    sites = tuple(SiteId(name) for name in spec.cohort.names)
    n_codes = len(counts[0])
    layout = ALGORITHM.segments(spec, layout_of(n_codes), RoundKind.TRAIN)
    sent = [weigh(mine, spec) for mine in counts]
    vectors = {site: encode_payload(payload, layout) for site, payload in zip(sites, sent, strict=True)}
    sums = decode_sums(Federation(sites, layout).exchange(vectors).total, layout, n_sites=len(sites))
    left = [np.asarray(sums[name][:]) - sent[0][name] for name in ("code_patients", "code_sites")]
    found: NDArray[Any] = np.stack(left)
    return found


@settings(deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=3, max_size=3),
    threshold=st.integers(2, 40),
)
def test_site_that_takes_its_part_out_of_the_sum_learns_nothing_of_the_others_rare_codes(
    counts: list[list[int]], threshold: int
) -> None:
    task = {"kind": "concept-vocabulary", "threshold": threshold, "min_sites": 2}
    found = what_the_others_have(counts, spec_of(task=task))
    for code in range(4):
        if sum(mine[code] for mine in counts) < threshold:
            assert found[:, code].tolist() == [0, 0]


def test_run_that_asks_for_less_shows_the_others_rare_codes_to_whoever_has_the_sum() -> None:
    # Why it has to be asked for: a code of seven patients, all at one hospital, of fifty that would publish it.
    found = what_the_others_have([[0], [7], [0]], spec_of(threshold=50, site_minimum=5))
    assert found[:, 0].tolist() == [7, 1]


def test_evaluation_round_adds_nothing_and_changes_nothing() -> None:
    spec = spec_of()
    raw = {"eval_records": np.zeros(1, dtype=np.int64)}
    payload = ALGORITHM.weigh(raw, n_records=3, spec=spec, layout=layout_of(1), kind=RoundKind.EVALUATE)
    state = PublicState(version=1, adapter={"published": np.array([1.0, 0.0], dtype=np.float32)})
    folded = ALGORITHM.fold(
        {"eval_records": payload["eval_records"] * 3}, state, spec=spec, layout=layout_of(2), kind=RoundKind.EVALUATE
    )
    assert folded.state is state
    assert folded.report.metrics == {"published_codes": 1.0}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"code_patients": np.zeros(2, dtype=np.float64)},
        {"code_patients": np.array([-1, 0], dtype=np.int64)},
        {"code_patients": np.zeros((1, 2), dtype=np.int64)},
        {"code_patients": np.zeros(2, dtype=np.int64), "more": np.zeros(1, dtype=np.int64)},
    ],
)
def test_raw_payload_that_is_no_count_is_refused(raw: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(RawPayloadInvalidError):
        ALGORITHM.weigh(raw, n_records=3, spec=spec_of(), layout=layout_of(1), kind=RoundKind.TRAIN)


def test_site_without_a_record_is_refused() -> None:
    with pytest.raises(RawPayloadInvalidError):
        weigh([1], spec_of(), n_records=0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("code_patients", [3 * CAP + 1, 2]),
        ("code_patients", [-1, 2]),
        ("code_sites", [4, 1]),
        # Sites without patients, fewer than the minimum of each, more than the cap of each.
        ("code_patients", [0, 2]),
        ("code_patients", [1, 2]),
        ("code_sites", [1, 0]),
        ("weight", [2]),
    ],
)
def test_sum_that_honest_sites_cannot_send_is_refused(name: str, values: list[int]) -> None:
    spec = spec_of(site_minimum=2)
    good = {"code_patients": [60, 2], "code_sites": [2, 1], "weight": [3]}
    sums = {key: np.array(value, dtype=np.int64) for key, value in good.items()}
    arguments: dict[str, Any] = {"spec": spec, "layout": layout_of(2), "kind": RoundKind.TRAIN, "n_sites": 3}
    ALGORITHM.fold(sums, nothing(2), **arguments)
    with pytest.raises(ImplausibleSumError):
        ALGORITHM.fold({**sums, name: np.array(values, dtype=np.int64)}, nothing(2), **arguments)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"adapter": {"kind": "full"}}, "task.kind"),
        ({"aggregation.algorithm": "fedavg-lora"}, "task.kind"),
        ({"task": {"kind": "instruction-tuning"}}, "task.kind"),
        ({"rounds": 2}, "rounds"),
        ({"task.min_sites": 4}, "task.min_sites"),
        ({"task.min_sites": 1}, "task.min_sites"),
        ({"task.site_minimum": 0}, "task.site_minimum"),
        ({"task": {"kind": "concept-vocabulary"}}, "task.threshold"),
    ],
)
def test_run_spec_that_pairs_them_wrongly_is_refused(changes: dict[str, object], path: str) -> None:
    document = run_spec_document(
        {
            "task": {"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2, "site_minimum": 1},
            "adapter": {"kind": "published-codes"},
            "aggregation.algorithm": "thresholded-counts",
            "rounds": 1,
        }
    )
    parse_run_spec(document)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section: Any = document
        for parent in parents:
            section = section[parent]
        section[last] = value
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(document)
    assert path in {fault.path for fault in caught.value.faults}


def test_layout_of_published_codes_is_one_vector() -> None:
    adapter = spec_of().adapter
    check_layout(layout_of(3), adapter)
    for tensors in (
        (TensorSpec(name="published", shape=(2, 2)),),
        (TensorSpec(name="other", shape=(3,)),),
        (TensorSpec(name="published", shape=(3,)), TensorSpec(name="more", shape=(3,))),
    ):
        with pytest.raises(AdapterLayoutSparseError):
            check_layout(AdapterLayout(kind="published-codes", tensors=tensors, peft_config={}), adapter)
