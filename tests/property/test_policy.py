"""Adding a restriction to a policy, or taking from what the site knows, never allows more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.ids import SiteId
from fl_protocol.testing.run_specs import SITE_NAMES, pin_of, resolved_run_spec
from site_agent.policy.evaluate import (
    Allowed,
    ApprovalTerm,
    DatasetFacts,
    SiteLedger,
    evaluate_automatic,
    evaluate_run,
    evaluate_term,
)
from site_agent.policy.explain import explain_run
from site_agent.policy.rules import (
    AdapterRule,
    ApprovalMode,
    CohortRule,
    DatasetRule,
    EgressRule,
    Permission,
    PrivacyRule,
    SitePolicy,
    parse_policy,
)

RUN_SPEC = resolved_run_spec({"purpose": "research: questions"})
RESEARCH, ANY, BILLING, NOTHING = (frozenset(names) for names in (["research"], ["any"], ["billing"], []))
BROAD, OTHER = frozenset({"broad"}), frozenset({"other"})
FIELDS = (
    "rule_purposes", "min_records", "tasks", "base_models", "kinds", "max_rank", "datasets", "min_cohort", "colluders",
    "without_dp", "egress", "approval", "registered_purposes", "n_records", "registered", "peers", "payload",
    "algorithms", "local_rules", "min_patients", "n_patients", "consent", "held_consent", "legal_basis", "held_basis",
    "is_expired",
)  # fmt: skip
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Case:
    policy: SitePolicy
    ledger: SiteLedger


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """The policy and ledger under which the run is just permitted, but for at most two values."""
    odd = draw(st.sets(st.sampled_from(FIELDS), max_size=2))

    def pick(name: str, usual: ValueT, *others: ValueT) -> ValueT:
        return draw(st.sampled_from(others)) if name in odd else usual

    rule = DatasetRule(
        purposes=pick("rule_purposes", RESEARCH, ANY, ANY | BILLING, BILLING, NOTHING),
        min_records=pick("min_records", 100, 98, 99, 101),
        min_patients=pick("min_patients", 40, 0, 39, 41),
        consent=pick("consent", BROAD, None, BROAD | OTHER, OTHER, NOTHING),
        legal_basis=pick("legal_basis", BROAD, None, BROAD | OTHER, OTHER, NOTHING),
    )
    policy = SitePolicy(
        tasks=pick("tasks", frozenset({"instruction-tuning"}), frozenset({"other"})),
        base_models=pick("base_models", frozenset({"ab" * 32}), frozenset({"cd" * 32})),
        adapters=AdapterRule(kinds=pick("kinds", frozenset({"lora"}), NOTHING), max_rank=pick("max_rank", 8, 7, 9, 10)),
        algorithms=pick("algorithms", frozenset({"fedavg-lora"}), frozenset({"fedmed"})),
        local_rules=pick("local_rules", frozenset({"plain"}), NOTHING),
        datasets=pick("datasets", {"medical-qa": rule}, {"other": rule}, {}),
        secure_aggregation=CohortRule(min_cohort=pick("min_cohort", 3, 4), assumed_colluders=pick("colluders", 0, 1)),
        privacy=PrivacyRule(without_dp=pick("without_dp", Permission.ALLOWED, Permission.DENIED)),
        egress=EgressRule(max_bytes_per_round=pick("egress", 1000, 999, 1001, 1002)),
        approval=pick("approval", ApprovalMode.AUTOMATIC, ApprovalMode.MANUAL),
    )
    facts = DatasetFacts(
        purposes=pick("registered_purposes", RESEARCH, ANY, ANY | BILLING, BILLING, NOTHING),
        n_records=pick("n_records", 100, 99, 101, 102),
        n_patients=pick("n_patients", 40, 39, 41, 42),
        consent=pick("held_consent", "broad", "other", None),
        legal_basis=pick("held_basis", "broad", "other", None),
        is_expired=pick("is_expired", False, True),
    )
    ledger = SiteLedger(
        site_id=SiteId("st-mary"),
        signing_key_sha256=pin_of("st-mary"),
        datasets=pick("registered", {"medical-qa": facts}, {}),
        peers={name: pin_of(name) for name in pick("peers", SITE_NAMES, SITE_NAMES[:2], ())},
        payload_bytes=pick("payload", 1000, 999, 1001, None),
    )
    return Case(policy, ledger)


def restrictions(policy: SitePolicy) -> Iterator[SitePolicy]:
    """The policy with each one of its rules narrower."""
    cohort, adapters, egress = policy.secure_aggregation, policy.adapters, policy.egress
    rules = policy.datasets.items()
    yield replace(policy, tasks=policy.tasks - {"instruction-tuning"})
    yield replace(policy, base_models=policy.base_models - {"ab" * 32})
    yield replace(policy, adapters=replace(adapters, kinds=adapters.kinds - {"lora"}))
    yield replace(policy, adapters=replace(adapters, max_rank=adapters.max_rank - 1))
    yield replace(policy, adapters=replace(adapters, max_rank=adapters.max_rank - 2))
    yield replace(policy, algorithms=policy.algorithms - {"fedavg-lora"})
    yield replace(policy, local_rules=policy.local_rules - {"plain"})
    yield replace(policy, datasets={})
    yield replace(policy, datasets={name: replace(rule, min_records=rule.min_records + 1) for name, rule in rules})
    yield replace(policy, datasets={name: replace(rule, min_records=rule.min_records + 2) for name, rule in rules})
    for more in (1, 2):
        yield replace(
            policy, datasets={name: replace(rule, min_patients=rule.min_patients + more) for name, rule in rules}
        )
    for key in ("consent", "legal_basis"):
        for name, rule in rules:
            yield replace(policy, datasets={name: replace(rule, **{key: _narrowed(getattr(rule, key), BROAD)})})
            yield replace(policy, datasets={name: replace(rule, **{key: _narrowed(getattr(rule, key), OTHER)})})
    for purpose in ("any", "research", "billing"):
        yield replace(
            policy, datasets={name: replace(rule, purposes=rule.purposes - {purpose}) for name, rule in rules}
        )
    yield replace(policy, secure_aggregation=replace(cohort, min_cohort=cohort.min_cohort + 1))
    yield replace(policy, secure_aggregation=replace(cohort, assumed_colluders=cohort.assumed_colluders + 1))
    yield replace(policy, privacy=PrivacyRule(without_dp=Permission.DENIED))
    yield replace(policy, egress=EgressRule(max_bytes_per_round=egress.max_bytes_per_round - 1))
    yield replace(policy, egress=EgressRule(max_bytes_per_round=egress.max_bytes_per_round - 2))
    yield replace(policy, approval=ApprovalMode.MANUAL)


def _narrowed(admitted: frozenset[str] | None, tag: frozenset[str]) -> frozenset[str]:
    """A demand where there was none, or one tag less."""
    return tag if admitted is None else admitted - tag


@settings(max_examples=300)
@given(case=cases())
def test_policy_with_a_restriction_more_never_allows_more(case: Case) -> None:
    for evaluate in (evaluate_run, evaluate_automatic):
        if isinstance(evaluate(RUN_SPEC, case.policy, case.ledger), Allowed):
            continue
        for narrower in restrictions(case.policy):
            assert not isinstance(evaluate(RUN_SPEC, narrower, case.ledger), Allowed)


@given(case=cases())
def test_automatic_approval_is_never_wider_than_a_persons(case: Case) -> None:
    if isinstance(evaluate_automatic(RUN_SPEC, case.policy, case.ledger), Allowed):
        assert isinstance(evaluate_run(RUN_SPEC, case.policy, case.ledger), Allowed)


@given(case=cases())
def test_peer_taken_off_the_list_never_allows_more(case: Case) -> None:
    peers = case.ledger.peers
    if isinstance(evaluate_automatic(RUN_SPEC, case.policy, case.ledger), Allowed):
        return
    for name in SITE_NAMES:
        fewer = replace(case.ledger, peers={peer: pin for peer, pin in peers.items() if peer != name})
        assert not isinstance(evaluate_automatic(RUN_SPEC, case.policy, fewer), Allowed)


@given(case=cases())
def test_empty_policy_allows_nothing(case: Case) -> None:
    for policy in (SitePolicy(), parse_policy({}), parse_policy({"approval": "automatic"})):
        for evaluate in (evaluate_run, evaluate_automatic):
            assert not isinstance(evaluate(RUN_SPEC, policy, case.ledger), Allowed)


@given(case=cases())
def test_policy_without_one_of_its_sections_allows_nothing(case: Case) -> None:
    """Default deny, section by section: what is left out is not permitted."""
    empty = SitePolicy()
    for section in ("tasks", "base_models", "adapters", "datasets", "privacy", "egress"):
        without = replace(case.policy, **{section: getattr(empty, section)})
        assert not isinstance(evaluate_run(RUN_SPEC, without, case.ledger), Allowed)


@given(case=cases())
def test_dataset_that_is_over_allows_nothing(case: Case) -> None:
    over = {name: replace(facts, is_expired=True) for name, facts in case.ledger.datasets.items()}
    assert not isinstance(evaluate_run(RUN_SPEC, case.policy, replace(case.ledger, datasets=over)), Allowed)


@given(case=cases())
def test_explanation_is_the_verdict_rule_by_rule(case: Case) -> None:
    for evaluate, is_automatic in ((evaluate_run, False), (evaluate_automatic, True)):
        verdict = evaluate(RUN_SPEC, case.policy, case.ledger)
        explained = explain_run(RUN_SPEC, case.policy, case.ledger, is_automatic=is_automatic)
        denied = [(finding.rule, finding.value, finding.limit) for finding in explained if not finding.is_met]
        if isinstance(verdict, Allowed):
            assert denied == []
        else:
            assert denied[0] == (verdict.rule, verdict.value, verdict.limit)
        assert all(finding.sentence != "this rule must be met" for finding in explained)


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DURATIONS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=30))


@given(
    approved_ago=DURATIONS,
    signed_for=st.none() | DURATIONS,
    days=st.integers(1, 30),
    fewer=st.integers(0, 29),
    later=DURATIONS,
)
def test_approval_never_holds_longer_under_a_shorter_life_or_later_in_time(
    approved_ago: timedelta, signed_for: timedelta | None, days: int, fewer: int, later: timedelta
) -> None:
    approved_at = NOW - approved_ago
    term = ApprovalTerm(approved_at=approved_at, ends_at=None if signed_for is None else approved_at + signed_for)
    policy = SitePolicy(approval_lifetime_days=days)
    if isinstance(evaluate_term(term, policy, NOW), Allowed):
        # What is still allowed is inside both ends.
        assert approved_ago < timedelta(days=days)
        assert signed_for is None or approved_ago < signed_for
        return
    shorter = SitePolicy(approval_lifetime_days=max(1, days - fewer))
    assert not isinstance(evaluate_term(term, shorter, NOW), Allowed)
    assert not isinstance(evaluate_term(term, policy, NOW + later), Allowed)
