"""Each server rule through whole exchanges of SA1 and the fold, against plain float64 that knows neither."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fl_protocol.codec.fixed_point import encode_payload, quantisation_step
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import read_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.federation import Federation
from fl_protocol.testing.run_specs import SITE_NAMES, resolved_run_spec

CLIP, CAP, ROUNDS = 2.0, 400, 3
N_RECORDS = {"st-mary": 120, "charite": 999, "ucsf": 250}
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(TensorSpec(name="a.lora_A.weight", shape=(2, 9)), TensorSpec(name="a.lora_B.weight", shape=(7, 2))),
    peft_config={"r": 2},
)
ETA, TAU, BETA1, BETA2 = 0.01, 0.02, 0.9, 0.99

Oracle = Callable[[list[np.ndarray]], np.ndarray]


def plain_fedavg(means: list[np.ndarray]) -> np.ndarray:
    return np.sum(means, axis=0)


def plain_fedavgm(means: list[np.ndarray]) -> np.ndarray:
    v = means[0]
    moved = v.copy()
    for d in means[1:]:
        v = BETA1 * v + (1 - BETA1) * d
        moved += v
    return moved


def plain_adaptive(means: list[np.ndarray], second: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    s, m, moved = np.full_like(means[0], TAU**2), means[0], np.zeros_like(means[0])
    for number, d in enumerate(means):
        m = d if number == 0 else BETA1 * m + (1 - BETA1) * d
        s = second(s, m**2)
        moved += ETA * m / (np.sqrt(s) + TAU)
    return moved


def plain_fedadagrad(means: list[np.ndarray]) -> np.ndarray:
    s, moved = TAU**2, np.zeros_like(means[0])
    for d in means:
        s = s + d**2
        moved += ETA * d / (np.sqrt(s) + TAU)
    return moved


ORACLES: dict[str, Oracle] = {
    "fedavg": plain_fedavg,
    "fedavgm": plain_fedavgm,
    "fedadagrad": plain_fedadagrad,
    "fedadam": lambda means: plain_adaptive(means, lambda s, q: BETA2 * s + (1 - BETA2) * q),
    "fedyogi": lambda means: plain_adaptive(means, lambda s, q: s - (1 - BETA2) * q * np.sign(s - q)),
}
PARAMETERS: dict[str, dict[str, float]] = {
    "fedavg": {},
    "fedavgm": {"beta1": BETA1},
    "fedadagrad": {"learning_rate": ETA, "tau": TAU},
    "fedadam": {"learning_rate": ETA, "tau": TAU, "beta1": BETA1, "beta2": BETA2},
    "fedyogi": {"learning_rate": ETA, "tau": TAU, "beta1": BETA1, "beta2": BETA2},
}


def raw(update: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "adapter_update": update,
        "train_loss_sum": np.array([40.5]),
        "train_tokens": np.array([20], np.int64),
        "eval_loss_sum": np.array([30.25]),
        "eval_tokens": np.array([11], np.int64),
        "eval_records": np.array([2], np.int64),
    }


def clipped_mean(updates: dict[str, np.ndarray]) -> np.ndarray:
    """McMahan's mean of clipped updates, by capped record counts, in float64."""
    total, weights = np.zeros(LAYOUT.n_parameters), 0
    for name, update in updates.items():
        wide = update.astype(np.float64)
        weight = min(N_RECORDS[name], CAP)
        total += weight * wide * min(1.0, CLIP / math.sqrt(math.fsum((wide * wide).tolist())))
        weights += weight
    return total / weights


@pytest.mark.parametrize("optimizer", sorted(ORACLES))
def test_rounds_through_the_secure_sum_equal_the_rule_on_plain_means(optimizer: str) -> None:
    spec = resolved_run_spec(
        {
            "privacy.clip_norm": CLIP,
            "privacy.weight_cap": CAP,
            "aggregation.server": {"optimizer": optimizer, **PARAMETERS[optimizer]},
        }
    )
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    payload = algorithm.segments(spec, LAYOUT, RoundKind.TRAIN)
    federation = Federation(tuple(SiteId(name) for name in SITE_NAMES), payload)
    rng = np.random.default_rng(11)
    start = rng.normal(0, 0.02, LAYOUT.n_parameters).astype(np.float32)
    state = at_a_site = PublicState(version=0, adapter=LAYOUT.unflatten(start))
    means: list[np.ndarray] = []
    for round_index in range(ROUNDS):
        # One site is well over clip_norm.
        updates = {
            name: (rng.standard_t(3, LAYOUT.n_parameters) * scale).astype(np.float32)
            for name, scale in zip(SITE_NAMES, (0.05, 0.2, 3.0), strict=True)
        }
        vectors = {
            SiteId(name): encode_payload(
                algorithm.weigh(raw(update), n_records=N_RECORDS[name], spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN),
                payload,
            )
            for name, update in updates.items()
        }
        total = federation.exchange(vectors, opened=federation.open_exchange(round_index=round_index)).total
        published = RingVector.from_bytes(total.to_bytes(), n32=payload.n_ring32, n64=payload.n_ring64)
        at_a_site = algorithm.fold(
            read_sums(published, payload), at_a_site, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN
        ).state
        sums = read_sums(total, payload, n_sites=3, is_given_up=True)
        state = algorithm.fold(sums, state, spec=spec, layout=LAYOUT, kind=RoundKind.TRAIN, n_sites=3).state
        assert at_a_site.to_bytes() == state.to_bytes(), "coordinator and sites have the same bits, moments and all"
        means.append(clipped_mean(updates))

    moved = LAYOUT.flatten(dict(state.adapter)).astype(np.float64) - start.astype(np.float64)
    weights = sum(min(n, CAP) for n in N_RECORDS.values())
    # A mean is off by half a step a site, scaled back, and by the float32 roundings of what is at most CLIP; the rule's
    # slope is at most 1 (fedavg, fedavgm) or eta / tau times 2 (m moves both the numerator and the root).
    of_mean = 3 * quantisation_step(payload, "adapter_update") / 2 * CAP / weights + 8 * 2.0**-24 * CLIP
    slope = 1.0 if optimizer in {"fedavg", "fedavgm"} else 2 * ETA / TAU
    bound = ROUNDS * (slope * of_mean + 8 * 2.0**-24)
    expected = ORACLES[optimizer](means)
    assert np.abs(moved - expected).max() <= bound
    assert bound < 1e-3 * np.sqrt(np.mean(expected**2)), "the bound means something"
