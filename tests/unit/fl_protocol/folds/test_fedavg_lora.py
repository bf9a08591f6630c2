"""The fold against plain float64 arithmetic that shares no code with it: clip, weigh, average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fl_protocol.codec.errors import ClipExceededError, ImplausibleSumError, NonFiniteUpdateError
from fl_protocol.codec.fixed_point import encode_payload, quantisation_step
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import decode_sums, read_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import RawPayloadInvalidError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterTensorError
from fl_protocol.testing.run_specs import resolved_run_spec

FEDAVG = ALGORITHMS["fedavg-lora"]


def small_layout() -> AdapterLayout:
    return AdapterLayout(kind="lora", tensors=(TensorSpec(name="t", shape=(2, 3)),), peft_config={})


def vector_layout(size: int) -> AdapterLayout:
    return AdapterLayout(kind="lora", tensors=(TensorSpec(name="t", shape=(size,)),), peft_config={})


def smollm2_layout() -> AdapterLayout:
    """LoRA of rank 8 on q_proj and v_proj of a 30-layer model with 576 hidden units and grouped values."""
    tensors: list[TensorSpec] = []
    for index in range(30):
        for module, size in (("q_proj", 576), ("v_proj", 192)):
            prefix = f"base_model.model.model.layers.{index}.self_attn.{module}"
            tensors.append(TensorSpec(name=f"{prefix}.lora_A.weight", shape=(8, 576)))
            tensors.append(TensorSpec(name=f"{prefix}.lora_B.weight", shape=(size, 8)))
    return AdapterLayout(kind="lora", tensors=tuple(tensors), peft_config={"r": 8})


def raw_train(update: np.ndarray, **changes: Any) -> dict[str, np.ndarray]:
    values: dict[str, Any] = {
        "adapter_update": update,
        "train_loss_sum": 40.5,
        "train_tokens": 20,
        "eval_loss_sum": 30.25,
        "eval_tokens": 11,
        "eval_records": 2,
    } | changes
    arrays = {"adapter_update": values.pop("adapter_update")}
    for name, value in values.items():
        arrays[name] = np.array([value], np.float64 if name.endswith("loss_sum") else np.int64)
    return arrays


def integer_sum(vectors: list[RingVector]) -> RingVector:
    total = RingVector.zeros(vectors[0].ring32.size, vectors[0].ring64.size)
    for vector in vectors:
        total.ring32[...] += vector.ring32
        total.ring64[...] += vector.ring64
    return total


def summed(
    raws: list[dict[str, np.ndarray]], n_records: list[int], spec: RunSpec, payload: PayloadLayout, kind: RoundKind
) -> Mapping[str, np.ndarray]:
    vectors = [
        encode_payload(FEDAVG.weigh(raw, n_records=n, spec=spec, layout=small_layout(), kind=kind), payload)
        for raw, n in zip(raws, n_records, strict=True)
    ]
    return decode_sums(integer_sum(vectors), payload, n_sites=len(raws))


@pytest.mark.parametrize("weight_cap", [10_000, 300])
def test_fold_through_the_secure_sums_integers_equals_the_plain_weighted_mean(weight_cap: int) -> None:
    layout = smollm2_layout()
    spec = resolved_run_spec({"privacy.clip_norm": 2.0, "privacy.weight_cap": weight_cap})
    rng = np.random.default_rng(5)
    start = {tensor.name: rng.normal(0, 0.02, tensor.shape).astype(np.float32) for tensor in layout.tensors}
    # Heavy tails, and one site well over clip_norm.
    scales = (1e-4, 3e-4, 2e-2)
    updates = [(rng.standard_t(3, layout.n_parameters) * scale).astype(np.float32) for scale in scales]
    n_records = [120, 999, 250]
    payload = FEDAVG.segments(spec, layout, RoundKind.TRAIN)
    sums = summed([raw_train(update) for update in updates], n_records, spec, payload, RoundKind.TRAIN)
    result = FEDAVG.fold(
        sums, PublicState(version=4, adapter=start), spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3
    )

    weights = [min(n, weight_cap) for n in n_records]
    clipped = []
    for update in updates:
        wide = update.astype(np.float64)
        norm = math.sqrt(math.fsum((wide * wide).tolist()))
        clipped.append(wide * min(1.0, 2.0 / norm))
    mean = sum(w * x for w, x in zip(weights, clipped, strict=True)) / sum(weights)

    # The stated bound: per site half a step of the ring, scaled back by W / sum of weights; and of each value the
    # float32 roundings of clip, factor, product and scaling, and of the mean itself.
    step = quantisation_step(payload, "adapter_update")
    quantisation = 3 * step / 2 * weight_cap / sum(weights)
    magnitude = sum(w * np.abs(x) for w, x in zip(weights, clipped, strict=True)) / sum(weights)
    bound = quantisation + magnitude * (8 * 2.0**-24)
    folded = layout.flatten(dict(result.state.adapter)).astype(np.float64)
    before = layout.flatten(start).astype(np.float64)
    # One more float32 rounding: theta + mean.
    assert (np.abs(folded - (before + mean)) <= bound + np.abs(before + mean) * 2.0**-24).all()
    assert quantisation < 1e-4 * float(np.sqrt(np.mean(mean**2))), "the ring is fine enough for the bound to mean much"
    assert result.state.version == 5
    assert result.report.n_records == sum(weights)
    assert result.report.n_clipped == 1
    assert result.report.update_norm == pytest.approx(math.sqrt(float((mean**2).sum())), rel=1e-5)


def test_fold_of_equal_updates_is_that_update() -> None:
    spec = resolved_run_spec()
    layout = small_layout()
    update = np.array([1, -2, 0.5, 0, 3, -0.25], np.float32)
    payload = FEDAVG.segments(spec, small_layout(), RoundKind.TRAIN)
    sums = summed([raw_train(update)] * 3, [10_000, 20_000, 10_000], spec, payload, RoundKind.TRAIN)
    state = PublicState(version=0, adapter={"t": np.zeros((2, 3), np.float32)})
    result = FEDAVG.fold(sums, state, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3)
    np.testing.assert_allclose(result.state.adapter["t"].reshape(-1), update, atol=5e-7)


def test_fold_reports_the_losses_of_all_tokens_together() -> None:
    spec = resolved_run_spec()
    payload = FEDAVG.segments(spec, small_layout(), RoundKind.TRAIN)
    zero = np.zeros(6, np.float32)
    raws = [
        raw_train(zero, train_loss_sum=10.0, train_tokens=4, eval_loss_sum=3.5, eval_tokens=2, eval_records=1),
        raw_train(zero, train_loss_sum=1.5, train_tokens=2, eval_loss_sum=1.0, eval_tokens=3, eval_records=2),
        raw_train(zero, train_loss_sum=2.0, train_tokens=3, eval_loss_sum=0.0, eval_tokens=0, eval_records=0),
    ]
    sums = summed(raws, [5, 6, 7], spec, payload, RoundKind.TRAIN)
    state = PublicState(version=0, adapter={"t": np.zeros((2, 3), np.float32)})
    report = FEDAVG.fold(sums, state, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN, n_sites=3).report
    assert report.train_loss == 13.5 / 9
    assert report.eval_loss == 4.5 / 5
    assert (report.n_records, report.n_eval_records, report.n_clipped) == (18, 3, 0)


def test_fold_of_an_evaluation_round_leaves_the_state_alone() -> None:
    spec = resolved_run_spec()
    payload = FEDAVG.segments(spec, small_layout(), RoundKind.EVALUATE)
    assert [segment.name for segment in payload.segments] == ["eval_records", "eval_tokens", "eval_loss_sum"]
    raw = {name: array for name, array in raw_train(np.zeros(6, np.float32)).items() if name.startswith("eval")}
    sums = summed([raw] * 3, [1, 1, 1], spec, payload, RoundKind.EVALUATE)
    state = PublicState(version=3, adapter={"t": np.ones((2, 3), np.float32)})
    result = FEDAVG.fold(sums, state, spec=spec, layout=small_layout(), kind=RoundKind.EVALUATE, n_sites=3)
    assert result.state is state
    assert result.report.eval_loss == 30.25 / 11
    assert result.report.train_loss is None
    assert result.report.n_eval_records == 6


def test_fold_is_the_same_bytes_every_time() -> None:
    spec = resolved_run_spec()
    layout = smollm2_layout()
    rng = np.random.default_rng(6)
    payload = FEDAVG.segments(spec, layout, RoundKind.TRAIN)
    raws = [raw_train(rng.normal(0, 1e-3, layout.n_parameters).astype(np.float32)) for _ in range(3)]
    sums = summed(raws, [100, 200, 300], spec, payload, RoundKind.TRAIN)
    adapter = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in layout.tensors}
    state = PublicState(version=0, adapter=adapter)
    results = [
        FEDAVG.fold(sums, state, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3).state for _ in range(2)
    ]
    assert results[0].to_bytes() == results[1].to_bytes()
    # The documented order of operations, element by element: float32(S_x * (W / S_w)), then one float32 addition.
    factor = spec.privacy.weight_cap / 600
    expected = np.array([np.float32(float(x) * factor) for x in sums["adapter_update"][:1000]], np.float32)
    assert np.array_equal(layout.flatten(dict(results[0].adapter))[:1000], expected)


def test_weigh_caps_the_weight_and_scales_by_it() -> None:
    spec = resolved_run_spec({"privacy.weight_cap": 400})
    update = np.array([1, 2, -2], np.float32)
    light = FEDAVG.weigh(raw_train(update), n_records=100, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN)
    heavy = FEDAVG.weigh(raw_train(update), n_records=5000, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN)
    assert light["adapter_update"].tolist() == [0.25, 0.5, -0.5]
    assert light["weight"].tolist() == [100]
    assert heavy["adapter_update"].tolist() == [1, 2, -2]
    assert heavy["weight"].tolist() == [400]
    assert light["was_clipped"].tolist() == heavy["was_clipped"].tolist() == [0]
    assert light["adapter_update"].dtype == np.float32


def test_weigh_clips_once_and_says_so() -> None:
    spec = resolved_run_spec({"privacy.clip_norm": 5.0})
    payload = FEDAVG.weigh(
        raw_train(np.array([30, 40], np.float32)),
        n_records=10_000,
        spec=spec,
        layout=small_layout(),
        kind=RoundKind.TRAIN,
    )
    np.testing.assert_allclose(payload["adapter_update"], [3, 4], rtol=1e-6)
    assert payload["was_clipped"].tolist() == [1]


def test_weigh_leaves_the_trainers_update_alone() -> None:
    update = np.array([30, 40], np.float32)
    FEDAVG.weigh(raw_train(update), n_records=3, spec=resolved_run_spec(), layout=small_layout(), kind=RoundKind.TRAIN)
    assert update.tolist() == [30, 40]


@pytest.mark.parametrize("n_records", [0, -5])
def test_weigh_without_records_is_refused(n_records: int) -> None:
    with pytest.raises(RawPayloadInvalidError):
        FEDAVG.weigh(
            raw_train(np.ones(2, np.float32)),
            n_records=n_records,
            spec=resolved_run_spec(),
            layout=small_layout(),
            kind=RoundKind.TRAIN,
        )


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("surprise", np.zeros(1)),
        ("train_tokens", None),
        ("train_tokens", np.array([1.0])),
        ("eval_loss_sum", np.array([1.0, 2.0])),
        ("adapter_update", np.zeros(2)),
        ("adapter_update", np.zeros((2, 1), np.float32)),
    ],
)
def test_weigh_of_another_raw_payload_is_refused_by_name(name: str, array: np.ndarray | None) -> None:
    raw = raw_train(np.ones(2, np.float32))
    if array is None:
        del raw[name]
    else:
        raw[name] = array
    with pytest.raises(RawPayloadInvalidError) as caught:
        FEDAVG.weigh(raw, n_records=1, spec=resolved_run_spec(), layout=small_layout(), kind=RoundKind.TRAIN)
    assert caught.value.facts["segment"] == name


def test_weigh_of_an_update_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteUpdateError):
        FEDAVG.weigh(
            raw_train(np.array([np.nan], np.float32)),
            n_records=1,
            spec=resolved_run_spec(),
            layout=small_layout(),
            kind=RoundKind.TRAIN,
        )


def test_loss_of_a_diverged_site_is_refused_at_encoding() -> None:
    spec = resolved_run_spec()
    raw = raw_train(np.zeros(6, np.float32), train_loss_sum=spec.local.max_tokens * 65.0)
    weighed = FEDAVG.weigh(raw, n_records=1, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN)
    with pytest.raises(ClipExceededError) as caught:
        encode_payload(weighed, FEDAVG.segments(spec, small_layout(), RoundKind.TRAIN))
    assert caught.value.facts["segment"] == "train_loss_sum"


def plausible_sums(spec: RunSpec) -> dict[str, np.ndarray]:
    payload = FEDAVG.segments(spec, small_layout(), RoundKind.TRAIN)
    raws = [raw_train(np.full(6, 0.5, np.float32))] * 3
    return dict(summed(raws, [100, 100, 100], spec, payload, RoundKind.TRAIN))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0),
        ("weight", 2),
        ("weight", -1),
        ("weight", 30_001),
        ("was_clipped", 4),
        ("was_clipped", -1),
        ("train_tokens", -1),
        ("train_tokens", 0),
        ("eval_tokens", -1),
        ("eval_records", 193),
        ("train_loss_sum", -0.5),
        ("eval_loss_sum", math.nan),
        ("eval_loss_sum", 1e12),
        ("adapter_update", 30.1),
        ("adapter_update", math.nan),
        # Plausible one by one, but a mean of updates of norm 10 cannot be longer than 10.
        ("adapter_update", 5.0),
    ],
)
def test_fold_of_a_sum_that_no_three_sites_can_have_sent_is_refused(name: str, value: float) -> None:
    spec = resolved_run_spec()
    sums = plausible_sums(spec)
    sums[name] = np.full_like(sums[name], value)
    state = PublicState(version=0, adapter={"t": np.zeros((2, 3), np.float32)})
    with pytest.raises(ImplausibleSumError):
        FEDAVG.fold(sums, state, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN, n_sites=3)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "n_sites"])
def test_fold_of_other_segments_is_refused(change: str) -> None:
    spec = resolved_run_spec()
    sums = plausible_sums(spec)
    n_sites = 3
    if change == "missing":
        del sums["weight"]
    elif change == "extra":
        sums["more"] = np.zeros(1)
    elif change == "shape":
        sums["adapter_update"] = sums["adapter_update"][:-1]
    else:
        n_sites = 4
    state = PublicState(version=0, adapter={"t": np.zeros((2, 3), np.float32)})
    with pytest.raises(ImplausibleSumError):
        FEDAVG.fold(sums, state, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN, n_sites=n_sites)


def test_fold_over_a_state_of_another_layout_is_refused() -> None:
    spec = resolved_run_spec()
    state = PublicState(version=0, adapter={"t": np.zeros((3, 2), np.float32)})
    with pytest.raises(AdapterTensorError):
        FEDAVG.fold(plausible_sums(spec), state, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN, n_sites=3)


def test_layout_has_room_for_the_largest_admitted_spec() -> None:
    names = [f"site-{number}" for number in range(200)]
    changes = {
        "cohort.sites": names,
        "local.steps": 1 << 10,
        "local.batch_size": 1 << 10,
        "local.max_length": 1 << 10,
        "privacy.weight_cap": 10**9,
        "evaluation.max_records": 1_000_000,
    }
    payload = FEDAVG.segments(resolved_run_spec(changes), vector_layout(25_000_000), RoundKind.TRAIN)
    assert payload.max_sites == 200
    assert payload.n_ring32 == 25_000_000


@pytest.mark.parametrize("clip_norm", [1e-6, 1e6])
def test_layout_of_the_extreme_clip_norms_can_be_encoded(clip_norm: float) -> None:
    spec = resolved_run_spec({"privacy.clip_norm": clip_norm})
    payload = FEDAVG.segments(spec, vector_layout(2), RoundKind.TRAIN)
    weighed = FEDAVG.weigh(
        raw_train(np.array([3e30, -4e30], np.float32)),
        n_records=10_000,
        spec=spec,
        layout=small_layout(),
        kind=RoundKind.TRAIN,
    )
    decoded = decode_sums(encode_payload(weighed, payload), payload, n_sites=1)["adapter_update"]
    np.testing.assert_allclose(decoded, [0.6 * clip_norm, -0.8 * clip_norm], rtol=1e-6)


def test_fold_over_a_sum_that_is_given_up_is_the_fold_of_one_that_is_kept() -> None:
    spec = resolved_run_spec()
    layout = smollm2_layout()
    rng = np.random.default_rng(7)
    payload = FEDAVG.segments(spec, layout, RoundKind.TRAIN)
    raws = [raw_train(rng.normal(0, 1e-3, layout.n_parameters).astype(np.float32)) for _ in range(3)]
    vector = integer_sum(
        [
            encode_payload(
                FEDAVG.weigh(raw, n_records=9, spec=spec, layout=small_layout(), kind=RoundKind.TRAIN), payload
            )
            for raw in raws
        ]
    )
    adapter = {tensor.name: rng.normal(0, 0.1, tensor.shape).astype(np.float32) for tensor in layout.tensors}
    state = PublicState(version=0, adapter=adapter)
    before = state.to_bytes()

    def folded(*, is_given_up: bool) -> PublicState:
        sums = read_sums(vector, payload, n_sites=3, is_given_up=is_given_up)
        return FEDAVG.fold(sums, state, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3).state

    kept = folded(is_given_up=False)
    over = folded(is_given_up=True)
    assert over.to_bytes() == kept.to_bytes()
    assert all(np.shares_memory(array, vector.ring32) for array in over.adapter.values())
    assert state.to_bytes() == before
