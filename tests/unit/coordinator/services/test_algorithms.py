"""Every algorithm and rule through whole runs of the real engine: what is served is folded to one state everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coordinator_engine_lab import ADAPTER, EngineLab

from fl_protocol.codec.clipping import clip_l2
from fl_protocol.folds.control_variate import control_of, control_step
from fl_protocol.folds.fedmed import is_attentive
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec

MakeLab = Callable[..., EngineLab]

SCAFFOLD = {"local.rule": "scaffold", "local.optimizer": "sgd"}
FEDMED = {"aggregation.algorithm": "fedmed", "aggregation.attention": {"stall": 60.0}}
"""The loss falls by less than 60 nats in every round, so that the gate is open from round 2 on."""


def add_control(raw: dict[str, np.ndarray], state: PublicState, spec: RunSpec) -> None:
    update, _ = clip_l2(raw["adapter_update"], spec.privacy.clip_norm)
    control = ADAPTER.flatten(control_of(state.server, ADAPTER))
    raw["control_update"] = control_step(update, control, spec=spec, round_index=state.version)


def add_distances(raw: dict[str, np.ndarray], state: PublicState, spec: RunSpec) -> None:
    layers = ADAPTER.unflatten(raw["adapter_update"]).values()
    raw["layer_distance"] = np.array([np.linalg.norm(layer.astype(np.float64)) for layer in layers])
    raw["is_attentive"] = np.array([int(is_attentive(state, spec))], np.int64)


def lab_of(make_lab: MakeLab, changes: dict[str, object], *names: str, rounds: int = 3) -> EngineLab:
    lab = make_lab(*names, rounds=rounds, changes=changes)
    add = {"scaffold": add_control, "fedmed": add_distances}.get(
        lab.spec.local.rule.value if lab.spec.local.rule.value == "scaffold" else lab.spec.aggregation.algorithm.value
    )
    if add is not None:
        for site in lab.sites.values():
            site.adds = lambda raw, state: add(raw, state, lab.spec)
    return lab


@pytest.mark.parametrize(
    ("changes", "server"),
    [
        ({"aggregation.server": {"optimizer": "fedavgm"}}, {"first_moment"}),
        ({"aggregation.server": {"optimizer": "fedadagrad"}}, {"second_moment"}),
        ({"aggregation.server": {"optimizer": "fedyogi"}}, {"first_moment", "second_moment"}),
        ({"aggregation.server": {"optimizer": "fedadam"}}, {"first_moment", "second_moment"}),
        ({"local.rule": "fedprox"}, set()),
        (SCAFFOLD, {"control"}),
        ({**SCAFFOLD, "aggregation.server": {"optimizer": "fedavgm"}}, {"control", "first_moment"}),
        (FEDMED, {"mediation"}),
        ({**FEDMED, "aggregation.server": {"optimizer": "fedadam"}}, {"mediation", "first_moment", "second_moment"}),
    ],
)
async def test_run_ends_with_one_state_at_the_coordinator_and_at_every_site(
    make_lab: MakeLab, changes: dict[str, Any], server: set[str]
) -> None:
    lab = lab_of(make_lab, changes)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert {site.state.digest() for site in lab.sites.values()} == {lab.run().public_state_sha256}
    state = next(iter(lab.sites.values())).state
    assert state.version == 3
    assert {name.split(".")[0] for name in state.server} == server
    if "mediation" in server:
        assert is_attentive(state, lab.spec)


@pytest.mark.parametrize("changes", [SCAFFOLD, FEDMED, {"aggregation.server": {"optimizer": "fedadam"}}])
async def test_site_that_missed_rounds_catches_up_to_the_same_moments_and_gate(
    make_lab: MakeLab, changes: dict[str, Any]
) -> None:
    lab = lab_of(make_lab, changes, "a-site", "b-site", "c-site", "d-site")
    late = lab.sites["d-site"]  # type: ignore[index]
    late.is_lost = True
    await lab.live(8000, until=lambda: lab.run().next_round_index == 2)
    assert lab.run().next_round_index == 2
    late.is_lost = False
    await lab.live(8000, until=lambda: lab.run().state == "COMPLETED")
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert late.state.digest() == lab.run().public_state_sha256
