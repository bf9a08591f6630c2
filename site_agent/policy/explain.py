"""A policy's verdict on a run as sentences for the steward: every rule, not only the first that fails.

Pure. Adds words to the findings of ``evaluate`` and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.run_spec import RunSpec
from site_agent.policy.evaluate import (
    EXPIRED_APPROVAL,
    RuleFinding,
    RuleValue,
    SiteLedger,
    automatic_findings,
    run_findings,
)
from site_agent.policy.rules import SitePolicy

_SENTENCES = {
    "tasks": "the run's task must be in 'tasks'",
    "base_models": "the base model's digest must be in 'base_models'",
    "adapters.kinds": "the adapter's kind must be in 'adapters.kinds'",
    "adapters.max_rank": "the adapter's rank must be at most 'adapters.max_rank'",
    "algorithms": "what becomes of the sum ('aggregation.algorithm') must be in 'algorithms'",
    "local_rules": "how this site trains ('local.rule') must be in 'local_rules'",
    "datasets": "the run's dataset must be under 'datasets'",
    "data.min_records": "the dataset must hold as many records as the run asks for",
    "data.min_patients": "the dataset must hold as many patients as the run asks for",
    "cohort.sites": "the run must name this site with its own signing key",
    "secure_aggregation.min_cohort": "the run must promise at least 'secure_aggregation.min_cohort' sites in each sum",
    "secure_aggregation.assumed_colluders": "each sum must hold three sites more than are assumed to collude",
    "secure_aggregation.roster": "the run must have enough sites for such a sum",
    "privacy.without_dp": "a run without differential privacy needs 'privacy: {without_dp: allowed}'",
    "privacy.smallest_cell": "a run that counts must leave out counts below 'privacy.smallest_cell' (site_minimum)",
    "privacy.rare_codes_in_sums": "a run that counts must keep codes below its threshold out of the sum, by "
    "site_minimum, or needs 'privacy: {rare_codes_in_sums: allowed}'",
    "egress.max_bytes_per_round": "a round must send at most 'egress.max_bytes_per_round' bytes",
    "approval": "approval without a person needs 'approval: automatic'",
    "peers": "approval without a person needs every other site in 'peers' of site.yaml, with the same key",
    "hours.train": "training starts only within 'hours.train'",
    EXPIRED_APPROVAL: "this site's approval has ended; 'wardround-site runs approve RUN' says yes again",
    "approval_lifetime_days": "an approval holds for at most the policy's 'approval_lifetime_days'",
}
_DATASET_SENTENCES = {
    "registered": "the dataset must be registered here ('wardround-site datasets register') and not withdrawn",
    "purposes": "the policy and the dataset's registration must share a purpose that the run states",
    "min_records": "the dataset must hold at least the policy's 'min_records'",
    "min_patients": "the dataset must hold at least the policy's 'min_patients'",
    "expires_on": "the dataset's last day ('expires' of its registration) must not be over",
    "consent": "the dataset must be registered with one of the policy's 'consent' tags",
    "legal_basis": "the dataset must be registered with one of the policy's legal bases",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedFinding:
    """One rule, how the run stands to it, and what that means."""

    rule: str
    is_met: bool
    value: RuleValue
    limit: RuleValue
    sentence: str


def sentence_for_rule(rule: str) -> str:
    """What a rule demands, in words."""
    known = _SENTENCES.get(rule)
    if known is not None:
        return known
    return _DATASET_SENTENCES.get(rule.rpartition(".")[2], "this rule must be met")


def explain_run(
    run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger, *, is_automatic: bool = False
) -> tuple[ExplainedFinding, ...]:
    """Every rule in order, met or not; with ``is_automatic`` also those that replace the steward's word."""
    walk = automatic_findings if is_automatic else run_findings
    return tuple(explain_finding(finding) for finding in walk(run_spec, policy, ledger))


def explain_finding(finding: RuleFinding) -> ExplainedFinding:
    """A finding with its sentence."""
    return ExplainedFinding(
        rule=finding.rule,
        is_met=finding.is_met,
        value=finding.value,
        limit=finding.limit,
        sentence=sentence_for_rule(finding.rule),
    )
