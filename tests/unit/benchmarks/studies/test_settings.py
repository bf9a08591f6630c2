from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.studies.cells import CellKey, Phase
from benchmarks.studies.settings import common_settings, differing_paths, digest_of, settings_digest
from wardround.studies.description import Arm

SPEC = {
    "base_model": {"name": "m", "sha256": "a" * 64},
    "local": {"seed": 7, "learning_rate": 0.1, "steps": 6, "batch_size": 4},
    "rounds": 3,
}
PARTS = {
    "run_spec": SPEC,
    "rounds": 3,
    "validation_fraction": 0.1,
    "data_sha256": {"a": "1", "b": "2"},
    "surroundings": {"device": "cpu", "precision": "float32", "versions": {"torch": "2"}},
}
KEY = CellKey(phase=Phase.TABLE, arm=Arm.FEDERATED, site="", seed=7, learning_rate=0.1, steps=6)


def common(**changes: object) -> str:
    return digest_of(common_settings(**{**PARTS, **changes}))  # type: ignore[arg-type]


def digest(key: CellKey = KEY, *, common_sha256: str = "c", is_secure: bool = False) -> str:
    return settings_digest(key, common_sha256=common_sha256, is_secure=is_secure)


@pytest.mark.parametrize(
    "changes",
    [
        {"run_spec": {**SPEC, "base_model": {"name": "m", "sha256": "b" * 64}}},
        {"run_spec": {**SPEC, "local": {**SPEC["local"], "batch_size": 8}}},
        {"rounds": 4},
        {"validation_fraction": 0.2},
        {"data_sha256": {"a": "1", "b": "3"}},
        {"surroundings": {"device": "cpu", "precision": "float32", "versions": {"torch": "3"}}},
        {"surroundings": {"device": "cpu", "precision": "bfloat16", "versions": {"torch": "2"}}},
    ],
)
def test_common_digest_changes_with_each_thing_that_figures_follow_from(changes: dict[str, object]) -> None:
    assert common(**changes) != common()


def test_common_digest_is_the_same_for_all_seeds_rates_and_steps() -> None:
    local = {"seed": 8, "learning_rate": 0.2, "steps": 12, "batch_size": 4}
    assert common(run_spec={**SPEC, "local": local}) == common()


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.SEARCH},
        {"arm": Arm.POOLED},
        {"site": "a"},
        {"seed": 8},
        {"learning_rate": 0.2},
        {"steps": 12},
    ],
)
def test_cell_s_digest_changes_with_each_part_of_its_setting(changes: dict[str, object]) -> None:
    assert digest(replace(KEY, **changes)) != digest()  # type: ignore[arg-type]


def test_cell_s_digest_changes_with_what_all_share() -> None:
    assert digest(common_sha256="d") != digest()


def test_kind_of_sum_matters_to_the_federated_arm_alone() -> None:
    assert digest(is_secure=True) != digest()
    alone = replace(KEY, arm=Arm.LOCAL, site="a")
    assert digest(alone, is_secure=True) == digest(alone)


def test_difference_is_named_by_its_path() -> None:
    other = {**SPEC, "rounds": 4, "local": {**SPEC["local"], "steps": 9}, "more": 1}
    assert differing_paths(SPEC, other) == ["local.steps", "more", "rounds"]
    assert differing_paths(SPEC, dict(SPEC)) == []
