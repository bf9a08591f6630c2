"""Adding a restriction to a policy, or taking from what the site knows, never allows more."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.ids import SiteId
from fl_protocol.testing.run_specs import SITE_NAMES, pin_of, resolved_run_spec
from site_agent.policy.evaluate import Allowed, DatasetFacts, SiteLedger, evaluate_automatic, evaluate_run
from site_agent.policy.rules import (
    AdapterRule,
    ApprovalMode,
    CohortRule,
    DatasetRule,
    EgressRule,
    Permission,
    PrivacyRule,
    SitePolicy,
)

RUN_SPEC = resolved_run_spec({"purpose": "research: questions"})
ValueT = TypeVar("ValueT")


def mostly(usual: ValueT, *others: ValueT) -> st.SearchStrategy[ValueT]:
    """Nearly always the value under which the run is permitted, so that permitted cases are not rare."""
    return st.sampled_from([usual] * 9 + list(others))


PURPOSES = mostly(
    frozenset({"research"}), frozenset({"any"}), frozenset({"any", "billing"}), frozenset({"billing"}), frozenset()
)


@st.composite
def policies(draw: st.DrawFn) -> SitePolicy:
    """Policies near the border at which the run is just permitted."""
    rule = DatasetRule(purposes=draw(PURPOSES), min_records=draw(mostly(100, 98, 99, 101)))
    return SitePolicy(
        tasks=draw(mostly(frozenset({"instruction-tuning"}), frozenset({"other"}))),
        base_models=draw(mostly(frozenset({"ab" * 32}), frozenset({"cd" * 32}))),
        adapters=AdapterRule(kinds=draw(mostly(frozenset({"lora"}), frozenset())), max_rank=draw(mostly(8, 7, 9, 10))),
        datasets=draw(mostly({"medical-qa": rule}, {"other": rule}, {})),
        secure_aggregation=CohortRule(min_cohort=draw(mostly(3, 4)), assumed_colluders=draw(mostly(0, 1))),
        privacy=PrivacyRule(without_dp=draw(mostly(Permission.ALLOWED, Permission.DENIED))),
        egress=EgressRule(max_bytes_per_round=draw(mostly(1000, 999, 1001, 1002))),
        approval=draw(mostly(ApprovalMode.AUTOMATIC, ApprovalMode.MANUAL)),
    )


@st.composite
def ledgers(draw: st.DrawFn) -> SiteLedger:
    facts = DatasetFacts(purposes=draw(PURPOSES), n_records=draw(mostly(100, 99, 101, 102)), n_patients=40)
    listed = draw(mostly(SITE_NAMES, SITE_NAMES[:2], ()))
    return SiteLedger(
        site_id=SiteId("st-mary"),
        signing_key_sha256=pin_of("st-mary"),
        datasets=draw(mostly({"medical-qa": facts}, {})),
        peers={name: pin_of(name) for name in listed},
        payload_bytes=draw(mostly(1000, 999, 1001, None)),
    )


@st.composite
def restricted(draw: st.DrawFn, policy: SitePolicy) -> SitePolicy:
    """The policy with one rule narrower."""
    cohort, adapters, egress = policy.secure_aggregation, policy.adapters, policy.egress
    narrower = {
        "task": lambda: replace(policy, tasks=policy.tasks - {"instruction-tuning"}),
        "model": lambda: replace(policy, base_models=policy.base_models - {"ab" * 32}),
        "kind": lambda: replace(policy, adapters=replace(adapters, kinds=adapters.kinds - {"lora"})),
        "rank": lambda: replace(policy, adapters=replace(adapters, max_rank=adapters.max_rank - 2)),
        "datasets": lambda: replace(policy, datasets={}),
        "records": lambda: replace(
            policy,
            datasets={
                name: replace(rule, min_records=rule.min_records + 2) for name, rule in policy.datasets.items()
            },
        ),
        "purposes": lambda: replace(
            policy,
            datasets={
                name: replace(rule, purposes=rule.purposes - {"any"}) for name, rule in policy.datasets.items()
            },
        ),
        "cohort": lambda: replace(policy, secure_aggregation=replace(cohort, min_cohort=cohort.min_cohort + 1)),
        "colluders": lambda: replace(
            policy, secure_aggregation=replace(cohort, assumed_colluders=cohort.assumed_colluders + 1)
        ),
        "privacy": lambda: replace(policy, privacy=PrivacyRule(without_dp=Permission.DENIED)),
        "egress": lambda: replace(policy, egress=EgressRule(max_bytes_per_round=egress.max_bytes_per_round - 2)),
        "approval": lambda: replace(policy, approval=ApprovalMode.MANUAL),
    }
    return narrower[draw(st.sampled_from(sorted(narrower)))]()


@given(data=st.data(), policy=policies(), ledger=ledgers())
def test_policy_with_a_restriction_more_never_allows_more(
    data: st.DataObject, policy: SitePolicy, ledger: SiteLedger
) -> None:
    narrower = data.draw(restricted(policy))
    for evaluate in (evaluate_run, evaluate_automatic):
        if isinstance(evaluate(RUN_SPEC, narrower, ledger), Allowed):
            assert isinstance(evaluate(RUN_SPEC, policy, ledger), Allowed)


@given(policy=policies(), ledger=ledgers())
def test_automatic_approval_is_never_wider_than_a_persons(policy: SitePolicy, ledger: SiteLedger) -> None:
    if isinstance(evaluate_automatic(RUN_SPEC, policy, ledger), Allowed):
        assert isinstance(evaluate_run(RUN_SPEC, policy, ledger), Allowed)


@given(policy=policies(), ledger=ledgers(), name=st.sampled_from(SITE_NAMES))
def test_peer_taken_off_the_list_never_allows_more(policy: SitePolicy, ledger: SiteLedger, name: str) -> None:
    fewer = replace(ledger, peers={peer: pin for peer, pin in ledger.peers.items() if peer != name})
    if isinstance(evaluate_automatic(RUN_SPEC, policy, fewer), Allowed):
        assert isinstance(evaluate_automatic(RUN_SPEC, policy, ledger), Allowed)


@given(ledger=ledgers())
def test_empty_policy_allows_nothing(ledger: SiteLedger) -> None:
    assert not isinstance(evaluate_run(RUN_SPEC, SitePolicy(), ledger), Allowed)
