"""SCAFFOLD through whole exchanges of SA1 and the fold, against the paper's equations in plain float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import encode_payload, sum_error_bound
from fl_protocol.codec.sums import decode_sums, read_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.control_variate import control_of, control_step
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.federation import Federation
from fl_protocol.testing.run_specs import resolved_run_spec

NAMES = ("a-site", "b-site", "c-site", "d-site")
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(TensorSpec(name="a.lora_A.weight", shape=(2, 3)), TensorSpec(name="a.lora_B.weight", shape=(4, 2))),
    peft_config={"r": 2},
)
D, RATE, STEPS, CLIP = LAYOUT.n_parameters, 0.1, 3, 50.0
N_RECORDS = dict(zip(NAMES, (40, 300, 90, 1000), strict=True))


def spec_of(*, weight_cap: int = 1, **changes: object) -> RunSpec:
    return resolved_run_spec(
        {
            "cohort.sites": list(NAMES),
            "local.rule": "scaffold",
            "local.optimizer": "sgd",
            "local.steps": STEPS,
            "local.learning_rate": RATE,
            "local.schedule": "constant",
            "privacy.clip_norm": CLIP,
            "privacy.weight_cap": weight_cap,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


@dataclass
class Hospital:
    """A site with a quadratic loss: its gradient is h (theta - b). It keeps c_k in float32, as a trainer does."""

    h: np.ndarray
    b: np.ndarray
    own: np.ndarray = field(default_factory=lambda: np.zeros(D, np.float32))
    next_own: np.ndarray | None = None

    def train(self, spec: RunSpec, state: PublicState) -> dict[str, np.ndarray]:
        theta_g = LAYOUT.flatten(dict(state.adapter))
        control = LAYOUT.flatten(control_of(state.server, LAYOUT))
        theta = theta_g.astype(np.float64)
        for _ in range(STEPS):
            theta = theta - RATE * (self.h * (theta - self.b) - self.own + control)
        update = (theta - theta_g).astype(np.float32)
        step = control_step(update, control, spec=spec, round_index=state.version)
        self.next_own = self.own + step
        return raw(update, step)


def raw(update: np.ndarray, control_update: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "adapter_update": update,
        "control_update": control_update,
        "train_loss_sum": np.array([4.5]),
        "train_tokens": np.array([20], np.int64),
        "eval_loss_sum": np.array([3.25]),
        "eval_tokens": np.array([11], np.int64),
        "eval_records": np.array([2], np.int64),
    }


def hospitals(seed: int) -> dict[str, Hospital]:
    rng = np.random.default_rng(seed)
    return {name: Hospital(h=rng.uniform(0.5, 2, D), b=rng.normal(0, 2, D)) for name in NAMES}


def run_rounds(spec: RunSpec, sites: dict[str, Hospital], present: list[tuple[str, ...]]) -> list[PublicState]:
    """The states after each round, through the secure sum; an absent site keeps its c_k."""
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    payload = algorithm.segments(spec, LAYOUT, RoundKind.TRAIN)
    federation = Federation(tuple(SiteId(name) for name in NAMES), payload)
    start = np.random.default_rng(1).normal(0, 1, D).astype(np.float32)
    states = [PublicState(version=0, adapter=LAYOUT.unflatten(start))]
    at_a_site = states[0]
    for round_index, here in enumerate(present):
        vectors = {}
        for name in here:
            values = algorithm.weigh(
                sites[name].train(spec, states[-1]),
                n_records=N_RECORDS[name],
                spec=spec,
                layout=LAYOUT,
                kind=RoundKind.TRAIN,
            )
            vectors[SiteId(name)] = encode_payload(values, payload)
        total = federation.exchange(vectors, opened=federation.open_exchange(round_index=round_index)).total
        at_a_site = algorithm.fold(
            decode_sums(total, payload), at_a_site, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN
        ).state
        sums = read_sums(total, payload, n_sites=len(here), is_given_up=True)
        states.append(
            algorithm.fold(sums, states[-1], spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=len(here)).state
        )
        assert at_a_site.to_bytes() == states[-1].to_bytes(), "who does not know the cohort folds the same bytes"
        for name in here:
            after = sites[name].next_own
            assert after is not None
            sites[name].own = after
    return states


def textbook(sites: dict[str, Hospital], theta: np.ndarray, present: list[tuple[str, ...]]) -> list[np.ndarray]:
    """Karimireddy et al., Algorithm 1, option II, in float64: the adapter and c after the last round."""
    c, own = np.zeros(D), {name: np.zeros(D) for name in NAMES}
    for here in present:
        moved, turned = np.zeros(D), np.zeros(D)
        for name in here:
            y = theta.copy()
            for _ in range(STEPS):
                y -= RATE * (sites[name].h * (y - sites[name].b) - own[name] + c)
            after = own[name] - c + (theta - y) / (STEPS * RATE)
            moved += y - theta
            turned += after - own[name]
            own[name] = after
        theta = theta + moved / len(here)
        c = c + turned / len(NAMES)
    return [theta, c]


PRESENT = [NAMES, NAMES, ("a-site", "b-site", "d-site"), NAMES]


def test_rounds_through_the_secure_sum_are_the_papers_algorithm_with_a_site_away_in_one() -> None:
    spec = spec_of()
    sites = hospitals(3)
    states = run_rounds(spec, sites, PRESENT)
    start = LAYOUT.flatten(dict(states[0].adapter)).astype(np.float64)
    theta, control = textbook(hospitals(3), start, PRESENT)
    payload = ALGORITHMS["fedavg-lora"].segments(spec, LAYOUT, RoundKind.TRAIN)
    # Four rounds; c is off by the control's own bound, and moves the adapter by L = 0.3 times that.
    bound = 4 * sum_error_bound(payload, "control_update", 4) + 4 * sum_error_bound(payload, "adapter_update", 4)
    bound += 4 * 40 * 2.0**-24 * CLIP / (STEPS * RATE)
    found = LAYOUT.flatten(control_of(states[-1].server, LAYOUT))
    assert np.abs(found - control).max() <= bound
    assert np.abs(LAYOUT.flatten(dict(states[-1].adapter)) - theta).max() <= bound
    assert bound < 0.01 * np.sqrt(np.mean(control**2)), "the bound means something"


def test_scaffold_removes_the_drift_that_fedavg_keeps() -> None:
    # Two optima of one sum of quadratics: FedAvg with several steps stops elsewhere (the paper's theorem II).
    sites = hospitals(8)
    optimum = sum(site.h * site.b for site in sites.values()) / sum(site.h for site in sites.values())
    states = run_rounds(spec_of(), sites, [NAMES] * 60)
    of_scaffold = float(np.abs(LAYOUT.flatten(dict(states[-1].adapter)) - optimum).max())
    theta = LAYOUT.flatten(dict(states[0].adapter)).astype(np.float64)
    for _ in range(60):
        moved = []
        for site in sites.values():
            y = theta.copy()
            for _ in range(STEPS):
                y = y - RATE * site.h * (y - site.b)
            moved.append(y - theta)
        theta = theta + np.mean(moved, axis=0)
    of_fedavg = float(np.abs(theta - optimum).max())
    assert of_scaffold < 1e-3
    assert of_fedavg > 0.02


def test_control_stays_the_weighted_mean_of_the_sites_own_where_all_were_counted() -> None:
    spec = spec_of(weight_cap=400)
    sites = hospitals(5)
    states = run_rounds(spec, sites, [NAMES] * 3)
    weights = {name: min(n, 400) for name, n in N_RECORDS.items()}
    expected = sum(weights[name] * sites[name].own.astype(np.float64) for name in NAMES) / sum(weights.values())
    found = LAYOUT.flatten(control_of(states[-1].server, LAYOUT))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_second_sum_publishes_nothing_that_the_first_does_not() -> None:
    # What an onlooker computes from the adapter's sum alone is the control's sum.
    spec = spec_of(weight_cap=400, privacy__clip_norm=2.0)
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    control = np.linspace(-1, 1, D).astype(np.float32)
    rng = np.random.default_rng(2)
    totals = {"adapter_update": np.zeros(D), "control_update": np.zeros(D), "weight": np.zeros(1)}
    for name in NAMES:
        # Some are clipped and some are not: were the control of the unclipped update, the difference of the two sums
        # would be one site's update up to a factor.
        update = (rng.normal(size=D) * (3.0 if name == "b-site" else 0.1)).astype(np.float32)
        norm = float(np.linalg.norm(update.astype(np.float64)))
        clipped = (update * min(1.0, 2.0 / norm)).astype(np.float32)
        step = control_step(clipped, control, spec=spec, round_index=0)
        weighed = algorithm.weigh(
            raw(update, step), n_records=N_RECORDS[name], spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN
        )
        totals = {key: total + weighed[key].astype(np.float64) for key, total in totals.items()}
    predicted = -totals["adapter_update"] / (STEPS * RATE) - control * totals["weight"] / 400
    np.testing.assert_allclose(totals["control_update"], predicted, atol=1e-5)


def sums_of_one_round(spec: RunSpec) -> tuple[dict[str, np.ndarray], PublicState, PayloadLayout]:
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    payload = algorithm.segments(spec, LAYOUT, RoundKind.TRAIN)
    state = PublicState(version=0, adapter=LAYOUT.unflatten(np.zeros(D, np.float32)))
    vectors = []
    for name, site in hospitals(4).items():
        values = algorithm.weigh(
            site.train(spec, state), n_records=N_RECORDS[name], spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN
        )
        vectors.append(encode_payload(values, payload))
    total = vectors[0]
    for vector in vectors[1:]:
        total.ring32[...] += vector.ring32
        total.ring64[...] += vector.ring64
    return dict(decode_sums(total, payload, n_sites=4)), state, payload


@pytest.mark.parametrize("change", ["control", "counted-less", "counted-more"])
def test_control_sum_that_does_not_follow_from_the_updates_is_refused(change: str) -> None:
    spec = spec_of()
    sums, state, _ = sums_of_one_round(spec)
    if change == "control":
        sums["control_update"] = sums["control_update"].copy()
        sums["control_update"][7] += 0.01
    else:
        sums["counted"] = np.array([3 if change == "counted-less" else 5], np.int64)
    with pytest.raises(ImplausibleSumError):
        ALGORITHMS["fedavg-lora"].fold(sums, state, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=4)


def test_control_of_an_evaluation_round_is_not_asked_for() -> None:
    payload = ALGORITHMS["fedavg-lora"].segments(spec_of(), LAYOUT, RoundKind.EVALUATE)
    assert {segment.name for segment in payload.segments} == {"eval_records", "eval_tokens", "eval_loss_sum"}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "cosine-by-round"])
def test_bound_of_the_control_holds_in_every_round_of_a_schedule(schedule: str) -> None:
    spec = spec_of(local__schedule=schedule, privacy__clip_norm=1.0)
    payload = ALGORITHMS["fedavg-lora"].segments(spec, LAYOUT, RoundKind.TRAIN)
    longest = np.zeros(D, np.float32)
    longest[0] = 1.0
    control = np.zeros(D, np.float32)
    for round_index in range(spec.rounds):
        # The worst that can be: every site sends the longest update, against the control that the last one left.
        sign = np.float32(1 if round_index % 2 else -1)
        step = control_step(longest * sign, control, spec=spec, round_index=round_index)
        assert np.abs(step).max() <= payload.segment("control_update").bound
        control = control + step
