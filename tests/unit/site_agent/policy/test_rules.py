from __future__ import annotations

from datetime import time

import pytest

from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy.rules import ApprovalMode, CohortRule, Permission, SitePolicy, TrainingHours, parse_policy


def paths_of(document: object) -> set[str]:
    with pytest.raises(PolicyFaultsError) as caught:
        parse_policy(document)  # type: ignore[arg-type]
    return {fault.path for fault in caught.value.faults}


def test_parse_policy_empty_document_permits_nothing() -> None:
    assert parse_policy({}) == SitePolicy()
    policy = SitePolicy()
    assert (policy.tasks, policy.base_models, dict(policy.datasets)) == (frozenset(), frozenset(), {})
    assert policy.adapters.max_rank == 0
    assert policy.egress.max_bytes_per_round == 0
    assert policy.privacy.without_dp is Permission.DENIED
    assert policy.approval is ApprovalMode.MANUAL


def test_parse_policy_without_algorithms_admits_what_there_was_before_the_key_and_nothing_later() -> None:
    policy = parse_policy({"tasks": ["instruction-tuning"]})
    assert policy.algorithms == {"fedavg-lora", "fedmed", "thresholded-counts"}
    assert policy.local_rules == {"plain", "fedprox", "scaffold"}


@pytest.mark.parametrize("nothing", [[], None])
def test_parse_policy_with_an_empty_list_of_algorithms_admits_none(nothing: object) -> None:
    policy = parse_policy({"algorithms": nothing, "local_rules": nothing})
    assert policy.algorithms == frozenset()
    assert policy.local_rules == frozenset()


def test_parse_policy_whole_document_reads_every_rule() -> None:
    policy = parse_policy(
        {
            "tasks": ["instruction-tuning"],
            "base_models": ["sha256:" + "0f" * 32, "ab" * 32],
            "adapters": {"kinds": ["lora"], "max_rank": 32},
            "algorithms": ["fedavg-lora"],
            "local_rules": ["plain", "fedprox"],
            "datasets": {"medical-qa": {"purposes": ["research"], "min_records": 100}},
            "secure_aggregation": {"min_cohort": 4, "assumed_colluders": 2},
            "privacy": {"without_dp": "allowed", "max_epsilon_per_dataset": 8.0, "delta": "1e-6"},
            "egress": {"max_bytes_per_round": 200000000},
            "hours": {"train": "20:00-06:00"},
            "approval": "automatic",
        }
    )
    assert policy.base_models == frozenset({"0f" * 32, "ab" * 32})
    assert policy.adapters.max_rank == 32
    assert policy.algorithms == {"fedavg-lora"}
    assert policy.local_rules == {"plain", "fedprox"}
    assert policy.datasets["medical-qa"].min_records == 100
    assert policy.secure_aggregation.smallest_cohort == 5
    assert policy.privacy.delta == pytest.approx(1e-6)
    assert policy.hours == TrainingHours(begins=time(20, 0), ends=time(6, 0))
    assert policy.approval is ApprovalMode.AUTOMATIC


def test_parse_policy_many_faults_lists_each_with_its_path() -> None:
    document = {
        "tasks": "instruction-tuning",
        "base_models": ["sha256:xyz"],
        "adapters": {"kinds": ["lora", 3], "max_rank": -1, "max_ranks": 4},
        "algorithms": "fedavg-lora",
        "local_rules": [7],
        "datasets": {"medical-qa": {"purpose": ["research"], "min_records": 0}},
        "secure_aggregation": {"min_cohort": 2, "assumed_colluders": -1},
        "privacy": {"without_dp": "yes", "delta": 2, "max_epsilon_per_dataset": 0},
        "egress": {"max_bytes_per_round": True},
        "hours": {"train": "25:00-06:00"},
        "approval": "auto",
        "egres": {},
    }
    assert paths_of(document) == {
        "tasks",
        "base_models",
        "adapters.kinds[1]",
        "adapters.max_rank",
        "adapters.max_ranks",
        "algorithms",
        "local_rules[0]",
        "datasets.medical-qa.purpose",
        "datasets.medical-qa.min_records",
        "secure_aggregation.min_cohort",
        "secure_aggregation.assumed_colluders",
        "privacy.without_dp",
        "privacy.delta",
        "privacy.max_epsilon_per_dataset",
        "egress.max_bytes_per_round",
        "hours.train",
        "approval",
        "egres",
    }


@pytest.mark.parametrize("document", [[], "tasks: []", 3])
def test_parse_policy_no_mapping_is_a_fault(document: object) -> None:
    assert paths_of(document) == {"(document)"}


def test_parse_policy_key_that_is_no_text_is_a_fault() -> None:
    assert paths_of({"datasets": {7: {}}}) == {"datasets"}


@pytest.mark.parametrize("min_cohort", [0, 1, 2])
def test_parse_policy_min_cohort_below_three_is_refused(min_cohort: int) -> None:
    assert paths_of({"secure_aggregation": {"min_cohort": min_cohort}}) == {"secure_aggregation.min_cohort"}


def test_cohort_rule_weaker_than_the_protocol_cannot_be_built() -> None:
    with pytest.raises(PolicyFaultsError):
        CohortRule(min_cohort=2)


@pytest.mark.parametrize(
    ("hours", "admitted", "refused"),
    [
        ("20:00-06:00", [time(20, 0), time(23, 59), time(0, 0), time(5, 59)], [time(6, 0), time(12, 0), time(19, 59)]),
        ("08:00-18:00", [time(8, 0), time(17, 59)], [time(7, 59), time(18, 0), time(0, 0)]),
        ("00:00-24:00", [time(0, 0), time(12, 0), time(23, 59)], []),
        ("22:00-24:00", [time(22, 0), time(23, 59)], [time(0, 0), time(21, 59)]),
    ],
)
def test_training_hours_admit_their_stretch_only(hours: str, admitted: list[time], refused: list[time]) -> None:
    read = parse_policy({"hours": {"train": hours}}).hours
    assert read is not None
    assert [read.admits(moment) for moment in admitted] == [True] * len(admitted)
    assert [read.admits(moment) for moment in refused] == [False] * len(refused)
