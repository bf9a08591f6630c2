from __future__ import annotations

from wardround.demo.site_host import policy_for_run

SPEC = {
    "purpose": "research: define phenotypes",
    "task": {"kind": "instruction-tuning"},
    "base_model": {"name": "m", "sha256": "a" * 64},
    "adapter": {"kind": "lora", "rank": 8},
    "data": {"dataset": "hpo", "min_records": 100},
    "local": {"rule": "fedprox"},
    "aggregation": {"algorithm": "fedmed"},
    "secure_aggregation": {"min_cohort": 3},
}


def test_policy_for_run_permits_this_run_and_nothing_wider() -> None:
    policy = policy_for_run(SPEC)
    assert policy["tasks"] == ["instruction-tuning"]
    assert policy["base_models"] == ["sha256:" + "a" * 64]
    assert policy["adapters"] == {"kinds": ["lora"], "max_rank": 8}
    assert policy["algorithms"] == ["fedmed"]
    assert policy["local_rules"] == ["fedprox"]
    assert policy["datasets"] == {"hpo": {"purposes": ["research: define phenotypes"], "min_records": 100}}
    assert policy["approval"] == "automatic"


def test_policy_for_a_run_that_counts_permits_the_cells_that_it_names() -> None:
    task = {"kind": "concept-vocabulary", "threshold": 5, "site_minimum": 3}
    shown = {"without_dp": "allowed", "smallest_cell": 3, "rare_codes_in_sums": "allowed"}
    assert policy_for_run({**SPEC, "task": task})["privacy"] == shown
    hidden = {"without_dp": "allowed", "smallest_cell": 5}
    assert policy_for_run({**SPEC, "task": {**task, "site_minimum": 5}})["privacy"] == hidden
    assert policy_for_run(SPEC)["privacy"] == {"without_dp": "allowed"}
