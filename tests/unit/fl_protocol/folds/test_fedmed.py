"""FedMed through whole exchanges of SA1 and the fold, against softmax attention in plain float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import encode_payload, quantisation_step
from fl_protocol.codec.sums import decode_sums, read_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import RawPayloadInvalidError
from fl_protocol.folds.fedmed import is_attentive
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec, run_spec_from_bytes
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.federation import Federation
from fl_protocol.testing.run_specs import SITE_NAMES, resolved_run_spec, run_spec_document

FEDMED = ALGORITHMS["fedmed"]
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(
        TensorSpec(name="a.lora_A.weight", shape=(2, 6)),
        TensorSpec(name="a.lora_B.weight", shape=(5, 2)),
        TensorSpec(name="b.lora_A.weight", shape=(2, 4)),
    ),
    peft_config={"r": 2},
)
SIZES = [12, 10, 8]
D = sum(SIZES)
CLIP, CAP = 2.0, 1024


def spec_of(changes: Mapping[str, object] | None = None, **attention: object) -> RunSpec:
    return resolved_run_spec(
        {
            "privacy.clip_norm": CLIP,
            "privacy.weight_cap": CAP,
            "aggregation.algorithm": "fedmed",
            "aggregation.attention": attention,
            **(changes or {}),
        }
    )


def layers(flat: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(SIZES)[:-1])


def norms(update: np.ndarray) -> list[float]:
    """How far each layer has moved."""
    return [math.sqrt(math.fsum((layer.astype(np.float64) ** 2).tolist())) for layer in layers(update)]


def raw(
    update: np.ndarray, distance: Sequence[float], *, is_open: bool, loss: float = 40.0, n_tokens: int = 20
) -> dict[str, np.ndarray]:
    return {
        "adapter_update": update,
        "layer_distance": np.array(distance, np.float64),
        "is_attentive": np.array([int(is_open)], np.int64),
        "train_loss_sum": np.array([loss], np.float64),
        "train_tokens": np.array([n_tokens], np.int64),
        "eval_loss_sum": np.array([30.25]),
        "eval_tokens": np.array([11], np.int64),
        "eval_records": np.array([2], np.int64),
    }


def weighed(values: Mapping[str, np.ndarray], spec: RunSpec, n_records: int = 10) -> dict[str, np.ndarray]:
    return FEDMED.weigh(values, n_records=n_records, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN)


def state_of(version: int = 0, server: Mapping[str, Any] | None = None) -> PublicState:
    start = np.random.default_rng(1).normal(0, 0.02, D).astype(np.float32)
    return PublicState(version=version, adapter=LAYOUT.unflatten(start), server=server or {})


def folded(
    payloads: Sequence[Mapping[str, np.ndarray]], state: PublicState, spec: RunSpec, *, algorithm: str = "fedmed"
) -> PublicState:
    """Through a whole exchange; the coordinator's state, which is a site's as well."""
    payload = ALGORITHMS[algorithm].segments(spec, LAYOUT, RoundKind.TRAIN)
    sites = tuple(SiteId(name) for name in SITE_NAMES)
    vectors = {site: encode_payload(values, payload) for site, values in zip(sites, payloads, strict=True)}
    total = Federation(sites, payload).exchange(vectors).total
    fold = ALGORITHMS[algorithm].fold
    at_a_site = fold(decode_sums(total, payload), state, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN)
    sums = read_sums(total, payload, n_sites=3, is_given_up=True)
    here = fold(sums, state, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=3)
    assert here.state.to_bytes() == at_a_site.state.to_bytes()
    assert here.report == at_a_site.report
    return here.state


def updates_of(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    # One is well over clip_norm.
    return [(rng.standard_t(3, D) * scale).astype(np.float32) for scale in (0.05, 0.1, 3.0)]


def clipped(update: np.ndarray) -> np.ndarray:
    wide = update.astype(np.float64)
    return wide * min(1.0, CLIP / math.sqrt(math.fsum((wide * wide).tolist())))


def bound_of(spec: RunSpec, least: float) -> float:
    """Half a step of the ring a site, scaled back by the smallest sum of factors, and float32's rounding."""
    payload = FEDMED.segments(spec, LAYOUT, RoundKind.TRAIN)
    return 3 * quantisation_step(payload, "adapter_update") / 2 / least + 12 * 2.0**-24 * CLIP


@pytest.mark.parametrize(("temperature", "step"), [(1.0, 1.0), (0.5, 0.75), (4.0, 1.5)])
def test_attentive_round_is_the_softmax_of_the_clipped_layer_distances(temperature: float, step: float) -> None:
    spec = spec_of(gate="always", temperature=temperature, step=step, max_distance=1.5)
    updates = updates_of(4)
    distances = np.array([norms(update) for update in updates])
    state = state_of()
    after = folded(
        [weighed(raw(u, s, is_open=True), spec) for u, s in zip(updates, distances.tolist(), strict=True)], state, spec
    )
    # Ji et al. 2019: alpha_u^l = softmax_u(s_u^l), theta^l <- theta^l + eps sum_u alpha_u^l x_u^l.
    attention = np.exp(np.minimum(distances / temperature, 1.5))
    attention /= attention.sum(axis=0)
    moved = LAYOUT.flatten(dict(after.adapter)).astype(np.float64) - LAYOUT.flatten(dict(state.adapter))
    by_layer = zip(*(layers(clipped(update)) for update in updates), strict=True)
    expected = np.concatenate(
        [
            step * sum(a * x for a, x in zip(attention[:, number], of_layer, strict=True))
            for number, of_layer in enumerate(by_layer)
        ]
    )
    assert np.abs(moved - expected).max() <= step * bound_of(spec, 3 * math.exp(-1.5)) + 2.0**-24
    assert attention.max() > 1.2 / 3, "attention is not uniform here"


def test_equal_distances_and_a_whole_step_are_uniform_fedavg_to_the_bit() -> None:
    updates, state = updates_of(5), state_of()
    spec = spec_of(gate="always", max_distance=1.0)
    # All are at or over max_distance: every factor is 1.
    attentive = folded([weighed(raw(u, [7.0, 2.5, 1.0], is_open=True), spec) for u in updates], state, spec)
    plain = resolved_run_spec({"privacy.clip_norm": CLIP, "privacy.weight_cap": 1})
    payloads = []
    for update in updates:
        values = raw(update, [0, 0, 0], is_open=False)
        del values["layer_distance"], values["is_attentive"]
        payloads.append(
            ALGORITHMS["fedavg-lora"].weigh(values, n_records=10, spec=plain, layout=LAYOUT, kind=RoundKind.TRAIN)
        )
    uniform = folded(payloads, state, plain, algorithm="fedavg-lora")
    assert all(np.array_equal(attentive.adapter[name], uniform.adapter[name]) for name in uniform.adapter)


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.9])
def test_any_equal_distances_are_the_uniform_mean_within_the_bound_of_the_sum(distance: float) -> None:
    updates, state = updates_of(6), state_of()
    spec = spec_of(gate="always", max_distance=1.0)
    after = folded([weighed(raw(u, [distance] * 3, is_open=True), spec) for u in updates], state, spec)
    moved = LAYOUT.flatten(dict(after.adapter)).astype(np.float64) - LAYOUT.flatten(dict(state.adapter))
    expected = np.mean([clipped(update) for update in updates], axis=0)
    assert np.abs(moved - expected).max() <= bound_of(spec, 3 * math.exp(-1)) + 2.0**-24


def test_round_with_the_gate_closed_is_fedavg_by_records_to_the_bit() -> None:
    updates, state, n_records = updates_of(7), state_of(), (128, 4096, 512)
    spec = spec_of()
    closed = folded(
        [weighed(raw(u, norms(u), is_open=False), spec, n) for u, n in zip(updates, n_records, strict=True)],
        state,
        spec,
    )
    plain = resolved_run_spec({"privacy.clip_norm": CLIP, "privacy.weight_cap": CAP})
    payloads = []
    for update, n in zip(updates, n_records, strict=True):
        values = raw(update, [0, 0, 0], is_open=False)
        del values["layer_distance"], values["is_attentive"]
        payloads.append(
            ALGORITHMS["fedavg-lora"].weigh(values, n_records=n, spec=plain, layout=LAYOUT, kind=RoundKind.TRAIN)
        )
    by_records = folded(payloads, state, plain, algorithm="fedavg-lora")
    assert all(np.array_equal(closed.adapter[name], by_records.adapter[name]) for name in by_records.adapter)


@pytest.mark.parametrize(
    ("stall", "losses", "opens"),
    [
        # Falls by 1/2, by 1/4 (which is not less than tau), by 1/8, by 1/2, and then rises.
        (0.25, [2.0, 1.5, 1.25, 1.125, 0.625, 0.75], [False, False, False, True, False, True]),
        (0.0, [2.0, 2.0, 2.0 + 2.0**-20, 1.5], [False, False, True, False]),
        # A negative tau waits until the loss has risen by more than that.
        (-0.25, [1.0, 1.25, 1.5625, 1.5], [False, False, True, False]),
    ],
)
def test_gate_opens_exactly_after_a_round_whose_summed_loss_stalled(
    stall: float, losses: list[float], opens: list[bool]
) -> None:
    spec = spec_of(stall=stall)
    state, seen = state_of(), []
    zero = np.zeros(D, np.float32)
    for loss in losses:
        is_open = is_attentive(state, spec)
        # The federated mean: sites whose own losses differ by far, over tokens that differ too.
        parts = [(0.5 * loss * 10, 10), (2.0 * loss * 5, 5), (loss * 35 - 0.5 * loss * 10 - 2.0 * loss * 5, 20)]
        payloads = [weighed(raw(zero, [0, 0, 0], is_open=is_open, loss=total, n_tokens=n), spec) for total, n in parts]
        state = folded(payloads, state, spec)
        seen.append(is_attentive(state, spec))
    assert seen == opens


def test_gate_is_read_off_the_public_state_that_travels() -> None:
    spec = spec_of(stall=0.25)
    zero, state = np.zeros(D, np.float32), state_of()
    for _ in range(2):
        state = folded([weighed(raw(zero, [0, 0, 0], is_open=False), spec)] * 3, state, spec)
    assert is_attentive(PublicState.from_bytes(state.to_bytes()), spec)
    assert is_attentive(state_of(), spec_of(gate="always"))


def test_round_without_a_trained_token_closes_the_gate_and_forgets_no_loss() -> None:
    spec = spec_of(stall=0.25)
    zero, state = np.zeros(D, np.float32), state_of()
    state = folded([weighed(raw(zero, [0, 0, 0], is_open=False, loss=40), spec)] * 3, state, spec)
    empty = folded([weighed(raw(zero, [0, 0, 0], is_open=False, loss=0, n_tokens=0), spec)] * 3, state, spec)
    assert not is_attentive(empty, spec)
    after = folded([weighed(raw(zero, [0, 0, 0], is_open=False, loss=38), spec)] * 3, empty, spec)
    assert is_attentive(after, spec), "it fell by 2 / 20 since the last round that had a loss"


@pytest.mark.parametrize("max_distance", [0.0, 1.0, 3.0])
def test_no_site_has_more_than_its_bounded_share_whatever_it_claims(max_distance: float) -> None:
    spec = spec_of(gate="always", max_distance=max_distance)
    honest = weighed(raw(np.zeros(D, np.float32), [0, 0, 0], is_open=True), spec)
    liar = weighed(raw(np.full(D, 1e3, np.float32), [1e300, 1e9, 1e4], is_open=True), spec)
    assert liar["layer_weight"].tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(honest["layer_weight"], [math.exp(-max_distance)] * 3, rtol=1e-6)
    after = folded([honest, honest, liar], state_of(), spec)
    moved = LAYOUT.flatten(dict(after.adapter)) - LAYOUT.flatten(dict(state_of().adapter))
    share = 1 / (1 + 2 * math.exp(-max_distance))
    assert np.linalg.norm(moved) <= CLIP * share * (1 + 1e-5)


def test_site_under_the_threshold_takes_the_least_attention_and_never_none() -> None:
    spec = spec_of(gate="always", max_distance=2.0, threshold=0.5)
    short, long = np.zeros(D, np.float32), np.zeros(D, np.float32)
    short[0], long[0] = 0.4, 0.6
    under = weighed(raw(short, [9, 9, 9], is_open=True), spec)
    over = weighed(raw(long, [9, 9, 9], is_open=True), spec)
    assert (under["selected"].tolist(), over["selected"].tolist()) == ([0], [1])
    np.testing.assert_allclose(under["layer_weight"], [math.exp(-2)] * 3, rtol=1e-6)
    assert over["layer_weight"].tolist() == [1, 1, 1]
    payload = FEDMED.segments(spec, LAYOUT, RoundKind.TRAIN)
    one = encode_payload(over, payload)
    report = FEDMED.fold(
        decode_sums(one, payload, n_sites=1), state_of(), spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=1
    ).report
    assert (report.metrics["attentive"], report.metrics["selected_sites"]) == (1.0, 1.0)
    # Only one of three is over it: the sum is still not its update alone.
    moved = folded([under, under, over], state_of(), spec).adapter["a.lora_A.weight"][0, 0]
    expected = (2 * math.exp(-2) * 0.4 + 0.6) / (2 * math.exp(-2) + 1)
    assert moved - state_of().adapter["a.lora_A.weight"][0, 0] == pytest.approx(expected, abs=1e-5)


def test_weigh_with_the_gate_closed_sends_the_weight_of_the_records_in_every_layer() -> None:
    spec = spec_of(max_distance=3.0, threshold=1e6)
    update = np.arange(D, dtype=np.float32) / 100
    payload = weighed(raw(update, [1, 2, 3], is_open=False), spec, n_records=256)
    assert payload["layer_weight"].tolist() == [0.25] * 3
    assert payload["adapter_update"].tolist() == (update * np.float32(0.25)).tolist()
    assert payload["weight"].tolist() == [256]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("layer_distance", np.array([1.0, 2.0])),
        ("layer_distance", np.array([1.0, -1e-9, 2.0])),
        ("layer_distance", np.array([1.0, math.nan, 2.0])),
        ("layer_distance", np.array([1, 2, 3], np.int64)),
        ("layer_distance", None),
        ("is_attentive", np.array([2], np.int64)),
        ("adapter_update", np.zeros(D - 1, np.float32)),
    ],
)
def test_weigh_of_another_raw_payload_is_refused(name: str, array: np.ndarray | None) -> None:
    values = raw(np.zeros(D, np.float32), [1, 2, 3], is_open=True)
    if array is None:
        del values[name]
    else:
        values[name] = array
    with pytest.raises(RawPayloadInvalidError):
        weighed(values, spec_of())


@pytest.mark.parametrize(
    ("is_open", "value"),
    [(True, 0.0), (True, 3 * math.exp(-1.0) * 0.999), (True, 3.001), (False, 0.0), (False, 0.0293), (False, 0.5)],
)
def test_fold_of_layer_weights_that_no_three_sites_can_have_is_refused(is_open: bool, value: float) -> None:
    spec = spec_of(gate="always" if is_open else "stalled")
    payload = FEDMED.segments(spec, LAYOUT, RoundKind.TRAIN)
    one = encode_payload(weighed(raw(np.zeros(D, np.float32), [0, 0, 0], is_open=is_open), spec), payload)
    one.ring32[...] *= 3
    one.ring64[...] *= 3
    sums = dict(decode_sums(one, payload, n_sites=3))
    FEDMED.fold(sums, state_of(), spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=3)
    sums["layer_weight"] = np.array([sums["layer_weight"][0], value, sums["layer_weight"][2]])
    with pytest.raises(ImplausibleSumError):
        FEDMED.fold(sums, state_of(), spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=3)


def test_evaluation_round_sends_no_attention_and_leaves_the_state() -> None:
    spec = spec_of()
    payload = FEDMED.segments(spec, LAYOUT, RoundKind.EVALUATE)
    assert {segment.name for segment in payload.segments} == {"eval_records", "eval_tokens", "eval_loss_sum"}
    values = {k: v for k, v in raw(np.zeros(D, np.float32), [0, 0, 0], is_open=True).items() if k.startswith("eval")}
    one = encode_payload(FEDMED.weigh(values, n_records=1, spec=spec, layout=LAYOUT, kind=RoundKind.EVALUATE), payload)
    state = state_of(3)
    result = FEDMED.fold(
        decode_sums(one, payload, n_sites=1), state, spec=spec, layout=LAYOUT, kind=RoundKind.EVALUATE, n_sites=1
    )
    assert result.state is state
    assert result.report.eval_loss == 30.25 / 11


def test_spec_fills_in_its_attention_and_other_algorithms_have_none() -> None:
    spec = spec_of(distance="js")
    document = spec.to_document()["aggregation"]
    assert isinstance(document, dict)
    assert document["attention"] == {
        "distance": "js",
        "temperature": 1.0,
        "max_distance": 1.0,
        "step": 1.0,
        "gate": "stalled",
        "stall": 0.0,
        "threshold": 0.0,
    }
    assert run_spec_from_bytes(spec.canonical_bytes()) == spec
    plain = parse_run_spec(run_spec_document()).to_document()["aggregation"]
    assert plain == {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"aggregation.attention": {"distance": "l2"}}, "aggregation.attention", "is not a known key"),
        (
            {"aggregation.algorithm": "fedmed", "aggregation.attention": {"max_distance": 3.5}},
            "aggregation.attention.max_distance",
            "must be at most 3",
        ),
        (
            {"aggregation.algorithm": "fedmed", "aggregation.attention": {"top_k": 2}},
            "aggregation.attention.top_k",
            "is not a known key",
        ),
        (
            {"aggregation.algorithm": "fedmed", "local.rule": "scaffold", "local.optimizer": "sgd"},
            "local.rule",
            "fedavg-lora",
        ),
    ],
)
def test_spec_with_an_attention_that_cannot_be_is_refused(changes: dict[str, object], path: str, message: str) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(run_spec_document(changes))
    (fault,) = caught.value.faults
    assert fault.path == path
    assert message in fault.message
