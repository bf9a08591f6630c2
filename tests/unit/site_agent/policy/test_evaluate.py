from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import time

import pytest

from fl_protocol.ids import Sha256Hex
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.testing.run_specs import pin_of, resolved_run_spec
from site_agent.policy.evaluate import (
    Allowed,
    DatasetFacts,
    Denied,
    SiteLedger,
    evaluate_automatic,
    evaluate_hours,
    evaluate_run,
    unlisted_peers,
)
from site_agent.policy.explain import explain_run
from site_agent.policy.rules import SitePolicy, parse_policy


def test_evaluate_run_inside_every_rule_is_allowed(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    assert evaluate_run(run_spec, open_policy, site_ledger) == Allowed()


def test_evaluate_run_empty_policy_denies_every_rule_that_opens_something(
    run_spec: RunSpec, site_ledger: SiteLedger
) -> None:
    unmet = {finding.rule for finding in explain_run(run_spec, SitePolicy(), site_ledger) if not finding.is_met}
    assert unmet == {
        "tasks",
        "base_models",
        "adapters.kinds",
        "adapters.max_rank",
        "datasets",
        "datasets.medical-qa.purposes",
        "privacy.without_dp",
        "egress.max_bytes_per_round",
    }


@pytest.mark.parametrize(
    ("section", "value", "rule"),
    [
        ("tasks", [], "tasks"),
        ("base_models", ["cd" * 32], "base_models"),
        ("adapters", {"kinds": ["ia3"], "max_rank": 8}, "adapters.kinds"),
        ("adapters", {"kinds": ["lora"], "max_rank": 7}, "adapters.max_rank"),
        ("algorithms", ["fedmed"], "algorithms"),
        ("local_rules", ["scaffold", "fedprox"], "local_rules"),
        ("datasets", {"other": {"purposes": ["research"]}}, "datasets"),
        ("datasets", {"medical-qa": {"purposes": ["billing"]}}, "datasets.medical-qa.purposes"),
        ("datasets", {"medical-qa": {"purposes": ["research"], "min_records": 101}}, "datasets.medical-qa.min_records"),
        ("secure_aggregation", {"min_cohort": 4}, "secure_aggregation.min_cohort"),
        ("secure_aggregation", {"assumed_colluders": 1}, "secure_aggregation.assumed_colluders"),
        ("privacy", {"without_dp": "denied"}, "privacy.without_dp"),
        ("egress", {"max_bytes_per_round": 999}, "egress.max_bytes_per_round"),
    ],
)
def test_evaluate_run_one_rule_narrower_names_that_rule(
    section: str,
    value: object,
    rule: str,
    policy_document: dict[str, object],
    run_spec: RunSpec,
    site_ledger: SiteLedger,
) -> None:
    verdict = evaluate_run(run_spec, parse_policy({**policy_document, section: value}), site_ledger)
    assert isinstance(verdict, Denied)
    assert verdict.rule == rule


def test_evaluate_run_denial_tells_value_and_limit(
    run_spec: RunSpec, policy_document: dict[str, object], site_ledger: SiteLedger
) -> None:
    policy = parse_policy({**policy_document, "adapters": {"kinds": ["lora"], "max_rank": 4}})
    assert evaluate_run(run_spec, policy, site_ledger) == Denied(rule="adapters.max_rank", value=8, limit=4)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (None, "datasets.medical-qa.registered"),
        (DatasetFacts(purposes=frozenset({"billing"}), n_records=100, n_patients=40), "datasets.medical-qa.purposes"),
        (
            DatasetFacts(purposes=frozenset({"research"}), n_records=99, n_patients=40),
            "datasets.medical-qa.min_records",
        ),
    ],
)
def test_evaluate_run_dataset_as_registered_decides(
    facts: DatasetFacts | None, rule: str, run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    ledger = replace(site_ledger, datasets={} if facts is None else {"medical-qa": facts})
    verdict = evaluate_run(run_spec, open_policy, ledger)
    assert isinstance(verdict, Denied)
    assert verdict.rule == rule


@pytest.mark.parametrize(("key", "rule"), [("min_records", "data.min_records"), ("min_patients", "data.min_patients")])
def test_evaluate_run_asking_for_more_than_is_there_is_denied(
    key: str, rule: str, make_run_spec: Callable[..., RunSpec], open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    verdict = evaluate_run(make_run_spec({f"data.{key}": 101}), open_policy, site_ledger)
    assert verdict == Denied(rule=rule, value={"min_records": 100, "min_patients": 40}[key], limit=101)


def test_evaluate_run_naming_another_key_for_this_site_is_denied(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    ledger = replace(site_ledger, signing_key_sha256=Sha256Hex("00" * 32))
    verdict = evaluate_run(run_spec, open_policy, ledger)
    assert isinstance(verdict, Denied)
    assert verdict.rule == "cohort.sites"


def test_evaluate_run_unknown_payload_size_is_denied(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    verdict = evaluate_run(run_spec, open_policy, replace(site_ledger, payload_bytes=None))
    assert isinstance(verdict, Denied)
    assert verdict.rule == "egress.max_bytes_per_round"


def test_evaluate_run_colluders_are_met_by_a_larger_cohort(
    make_run_spec: Callable[..., RunSpec], policy_document: dict[str, object], site_ledger: SiteLedger
) -> None:
    sites = ["st-mary", "charite", "ucsf", "karolinska"]
    run_spec = make_run_spec({"cohort.sites": sites, "cohort.quorum": 4, "secure_aggregation.min_cohort": 4})
    policy = parse_policy({**policy_document, "secure_aggregation": {"assumed_colluders": 1}})
    assert evaluate_run(run_spec, policy, site_ledger) == Allowed()


def test_evaluate_automatic_under_manual_policy_is_denied_by_approval(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    assert evaluate_automatic(run_spec, open_policy, site_ledger) == Denied(
        rule="approval", value="automatic", limit="manual"
    )


@pytest.mark.parametrize(
    ("purpose", "admitted", "is_allowed"),
    [
        ("research: answer questions", ["research"], True),
        ("Research", ["research"], True),
        ("Answer patient questions", ["research"], False),
        ("researching the market", ["research"], False),
        ("Answer patient questions", ["any"], True),
    ],
)
def test_evaluate_automatic_needs_a_purpose_that_the_run_states(
    purpose: str,
    admitted: list[str],
    is_allowed: bool,
    make_run_spec: Callable[..., RunSpec],
    policy_document: dict[str, object],
    site_ledger: SiteLedger,
) -> None:
    policy = parse_policy(
        {**policy_document, "approval": "automatic", "datasets": {"medical-qa": {"purposes": admitted}}}
    )
    facts = DatasetFacts(purposes=frozenset(admitted), n_records=100, n_patients=40)
    ledger = replace(site_ledger, datasets={"medical-qa": facts})
    verdict = evaluate_automatic(make_run_spec({"purpose": purpose}), policy, ledger)
    expected = Allowed() if is_allowed else "datasets.medical-qa.purposes"
    assert (verdict if is_allowed else getattr(verdict, "rule", None)) == expected


@pytest.mark.parametrize(
    "peers", [{}, {"charite": pin_of("charite")}, {"charite": pin_of("charite"), "ucsf": "0" * 64}]
)
def test_evaluate_automatic_with_an_unlisted_or_other_key_is_denied(
    peers: dict[str, str],
    make_run_spec: Callable[..., RunSpec],
    policy_document: dict[str, object],
    site_ledger: SiteLedger,
) -> None:
    run_spec = make_run_spec({"purpose": "research"})
    policy = parse_policy({**policy_document, "approval": "automatic"})
    ledger = replace(site_ledger, peers=peers)
    verdict = evaluate_automatic(run_spec, policy, ledger)
    assert isinstance(verdict, Denied)
    assert verdict.rule == "peers"
    assert "ucsf" in unlisted_peers(run_spec, ledger)


def test_evaluate_hours_outside_the_stretch_names_it() -> None:
    policy = parse_policy({"hours": {"train": "20:00-06:00"}})
    assert evaluate_hours(policy, time(12, 30)) == Denied(rule="hours.train", value="12:30", limit="20:00-06:00")
    assert evaluate_hours(policy, time(21, 0)) == Allowed()
    assert evaluate_hours(SitePolicy(), time(12, 30)) == Allowed()


def test_explain_run_has_a_sentence_of_its_own_for_every_rule(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    findings = explain_run(run_spec, open_policy, site_ledger, is_automatic=True)
    sentences = [finding.sentence for finding in findings]
    assert "this rule must be met" not in sentences
    assert [finding.rule for finding in findings if not finding.is_met] == ["approval", "datasets.medical-qa.purposes"]


def vocabulary_run(site_minimum: int) -> RunSpec:
    task = {"kind": "concept-vocabulary", "threshold": 50, "min_sites": 3, "site_minimum": site_minimum}
    changes = {"task": task, "adapter": {"kind": "published-codes"}, "aggregation.algorithm": "thresholded-counts"}
    return resolved_run_spec({**changes, "rounds": 1})


@pytest.mark.parametrize(
    ("privacy", "site_minimum", "is_met"),
    [({}, 4, False), ({}, 5, True), ({"smallest_cell": 10}, 9, False), ({"smallest_cell": 1}, 1, True)],
)
def test_run_that_counts_must_leave_out_the_cells_that_the_policy_calls_small(
    site_ledger: SiteLedger, privacy: dict[str, object], site_minimum: int, is_met: bool
) -> None:
    policy = parse_policy({"privacy": privacy})
    findings = explain_run(vocabulary_run(site_minimum), policy, site_ledger)
    (finding,) = [finding for finding in findings if finding.rule == "privacy.smallest_cell"]
    assert finding.is_met is is_met
    assert "site_minimum" in finding.sentence


@pytest.mark.parametrize(
    ("privacy", "site_minimum", "is_met"),
    [
        ({}, 49, False),
        ({}, 50, True),
        ({"smallest_cell": 1}, 5, False),
        ({"rare_codes_in_sums": "allowed"}, 5, True),
        ({"rare_codes_in_sums": "denied"}, 5, False),
    ],
)
def test_run_whose_sum_would_show_rare_codes_needs_the_policy_s_word(
    site_ledger: SiteLedger, privacy: dict[str, object], site_minimum: int, is_met: bool
) -> None:
    policy = parse_policy({"privacy": privacy})
    findings = explain_run(vocabulary_run(site_minimum), policy, site_ledger)
    (finding,) = [finding for finding in findings if finding.rule == "privacy.rare_codes_in_sums"]
    assert finding.is_met is is_met
    assert "threshold" in finding.sentence


def test_run_that_trains_has_no_rule_about_cells_or_codes(
    run_spec: RunSpec, open_policy: SitePolicy, site_ledger: SiteLedger
) -> None:
    rules = {finding.rule for finding in explain_run(run_spec, open_policy, site_ledger)}
    assert not rules & {"privacy.smallest_cell", "privacy.rare_codes_in_sums"}
