"""Whether a run may use this site: one list of rules, walked in order; the first that is not met is the denial.

Pure. ``SiteLedger`` is what the site itself knows (datasets, peers, the payload's size); nothing in it comes from
the coordinator's word alone. The coordinator may learn a denied rule's name, never its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from types import MappingProxyType

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import Mechanism
from fl_protocol.spec.secagg_params import SMALLEST_COHORT, SecAggParams
from fl_protocol.spec.tasks.concept_vocabulary import ConceptVocabulary
from site_agent.policy.rules import ANY_PURPOSE, ApprovalMode, DatasetRule, Permission, SitePolicy

RuleValue = str | int | float | None

EXPIRED_APPROVAL = "approval-expired"
"""The one rule that is about the approval, not about the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Every rule is met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The first rule that is not met, what the run asks for, and what the policy admits."""

    rule: str
    value: RuleValue
    limit: RuleValue


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the registry knows of a dataset that is registered and not withdrawn.

    Attributes:
        expires_on: the last day on which it may be used, as a date; None where its owner set none.
        is_expired: whether that day is over. Computed by whoever has a clock.
    """

    purposes: frozenset[str]
    n_records: int
    n_patients: int
    consent: str | None = None
    legal_basis: str | None = None
    expires_on: str | None = None
    is_expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLedger:
    """What the site knows by itself.

    Attributes:
        site_id: the name it is enrolled under.
        signing_key_sha256: the fingerprint of its own signing key.
        datasets: by name; withdrawn ones are not in it.
        peers: fingerprints that the steward compared out of band.
        payload_bytes: how many bytes of ring vector leave in one round, None while the adapter's layout is unknown.
    """

    site_id: SiteId
    signing_key_sha256: Sha256Hex
    datasets: Mapping[str, DatasetFacts] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    payload_bytes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasets", MappingProxyType(dict(self.datasets)))
        object.__setattr__(self, "peers", MappingProxyType(dict(self.peers)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalTerm:
    """For how long a site's yes was said. ``ends_at`` is None in an approval that an earlier version signed."""

    approved_at: datetime
    ends_at: datetime | None

    def last_instant(self, policy: SitePolicy) -> datetime:
        """When it ends under this policy: as it was signed, and no later than the policy's lifetime after its day."""
        longest = self.approved_at + timedelta(days=policy.approval_lifetime_days)
        return longest if self.ends_at is None else min(self.ends_at, longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFinding:
    """One rule and how the run stands to it."""

    rule: str
    is_met: bool
    value: RuleValue
    limit: RuleValue


def evaluate_run(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Allowed | Denied:
    """Whether a steward may approve the run, and whether its rounds may go on after approval."""
    return _first_denial(run_findings(run_spec, policy, ledger))


def evaluate_automatic(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Allowed | Denied:
    """Whether the agent may approve the run without a person: all rules, and the four that replace the person."""
    return _first_denial(automatic_findings(run_spec, policy, ledger))


def evaluate_hours(policy: SitePolicy, local_time: time) -> Allowed | Denied:
    """Whether training may start at this time of day, the site's own."""
    return _first_denial(iter([hours_finding(policy, local_time)]))


def evaluate_term(term: ApprovalTerm, policy: SitePolicy, now: datetime) -> Allowed | Denied:
    """Whether an approval still holds at this instant. Its end itself is outside."""
    return _first_denial(iter([term_finding(term, policy, now)]))


def term_finding(term: ApprovalTerm, policy: SitePolicy, now: datetime) -> RuleFinding:
    """How an approval stands to its own end, and to the policy's ``approval_lifetime_days``."""
    last = term.last_instant(policy)
    return RuleFinding(
        rule=EXPIRED_APPROVAL,
        is_met=now < last,
        value=f"{now:%Y-%m-%d %H:%M} UTC",
        limit=f"{last:%Y-%m-%d %H:%M} UTC",
    )


def hours_finding(policy: SitePolicy, local_time: time) -> RuleFinding:
    """How this time of day stands to the hours in which training may start."""
    return RuleFinding(
        rule="hours.train",
        is_met=policy.hours is None or policy.hours.admits(local_time),
        value=f"{local_time:%H:%M}",
        limit="any hour" if policy.hours is None else str(policy.hours),
    )


def run_findings(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Iterator[RuleFinding]:
    """Every rule that a run must meet, in the order in which they are told."""
    yield _one_of("tasks", run_spec.task.kind, policy.tasks)
    yield _one_of("base_models", run_spec.base_model.sha256, policy.base_models)
    yield _one_of("adapters.kinds", run_spec.adapter.kind, policy.adapters.kinds)
    if run_spec.adapter.low_rank is not None:
        yield _at_most("adapters.max_rank", run_spec.adapter.low_rank, policy.adapters.max_rank)
    yield _one_of("algorithms", run_spec.aggregation.algorithm, policy.algorithms)
    yield _one_of("local_rules", run_spec.local.rule, policy.local_rules)
    yield from _dataset_findings(run_spec, policy, ledger)
    yield from _cohort_findings(run_spec, policy, ledger)
    without_dp = policy.privacy.without_dp
    yield RuleFinding(
        rule="privacy.without_dp",
        is_met=run_spec.privacy.mechanism is not Mechanism.NONE or without_dp is Permission.ALLOWED,
        value=run_spec.privacy.mechanism,
        limit=without_dp,
    )
    if isinstance(run_spec.task, ConceptVocabulary):
        yield _at_least("privacy.smallest_cell", run_spec.task.site_minimum, policy.privacy.smallest_cell)
        is_allowed = policy.privacy.rare_codes_in_sums is Permission.ALLOWED
        yield RuleFinding(
            rule="privacy.rare_codes_in_sums",
            is_met=is_allowed or run_spec.task.hides_rare_codes,
            value=run_spec.task.site_minimum,
            limit="any minimum" if is_allowed else run_spec.task.threshold,
        )
    yield _egress_finding(policy, ledger)


def automatic_findings(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Iterator[RuleFinding]:
    """Every rule that a run must meet to be approved without a person."""
    yield RuleFinding(
        rule="approval",
        is_met=policy.approval is ApprovalMode.AUTOMATIC,
        value=ApprovalMode.AUTOMATIC,
        limit=policy.approval,
    )
    yield from run_findings(run_spec, policy, ledger)
    name = run_spec.data.dataset
    purposes = permitted_purposes(name, policy, ledger)
    yield RuleFinding(
        rule=f"datasets.{name}.purposes",
        is_met=stated_purpose(run_spec, policy, ledger) is not None,
        value=run_spec.purpose,
        limit=_listed(purposes),
    )
    unlisted = unlisted_peers(run_spec, ledger)
    yield RuleFinding(
        rule="peers", is_met=not unlisted, value=_listed(frozenset(unlisted)), limit=f"{len(ledger.peers)} listed"
    )


def permitted_purposes(dataset: str, policy: SitePolicy, ledger: SiteLedger) -> frozenset[str]:
    """The purposes that both the policy and the dataset's registration admit; empty where either has none."""
    rule = policy.datasets.get(dataset, DatasetRule())
    facts = ledger.datasets.get(dataset)
    registered = facts.purposes if facts is not None else frozenset[str]()
    if ANY_PURPOSE in rule.purposes:
        return registered
    if ANY_PURPOSE in registered:
        return rule.purposes
    return rule.purposes & registered


def stated_purpose(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> str | None:
    """The permitted purpose that the run itself states, or None where a person must judge its sentence.

    A run states a purpose by its ``purpose`` being that word, or beginning with it and a colon ("research: ...").
    """
    purposes = permitted_purposes(run_spec.data.dataset, policy, ledger)
    if ANY_PURPOSE in purposes:
        return run_spec.purpose
    stated = run_spec.purpose.partition(":")[0].strip().casefold()
    return next((purpose for purpose in sorted(purposes) if purpose.casefold() == stated), None)


def unlisted_peers(run_spec: RunSpec, ledger: SiteLedger) -> tuple[SiteId, ...]:
    """The other sites of the roster whose key is not the one that the steward compared and listed."""
    return tuple(
        site.name
        for site in run_spec.cohort.sites
        if site.name != ledger.site_id
        and (site.signing_key_sha256 is None or ledger.peers.get(site.name) != site.signing_key_sha256)
    )


def _dataset_findings(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Iterator[RuleFinding]:
    name = run_spec.data.dataset
    rule = policy.datasets.get(name)
    yield _one_of("datasets", name, frozenset(policy.datasets))
    facts = ledger.datasets.get(name)
    prefix = f"datasets.{name}"
    yield RuleFinding(rule=f"{prefix}.registered", is_met=facts is not None, value=name, limit="a registered dataset")
    purposes = permitted_purposes(name, policy, ledger)
    yield RuleFinding(rule=f"{prefix}.purposes", is_met=bool(purposes), value=run_spec.purpose, limit=_listed(purposes))
    n_records = facts.n_records if facts is not None else 0
    n_patients = facts.n_patients if facts is not None else 0
    yield RuleFinding(
        rule=f"{prefix}.expires_on",
        is_met=facts is not None and not facts.is_expired,
        value=None if facts is None else facts.expires_on,
        limit="today, or later",
    )
    if rule is not None:
        yield _at_least(f"{prefix}.min_records", n_records, rule.min_records)
        yield _at_least(f"{prefix}.min_patients", n_patients, rule.min_patients)
        yield from _ground_findings(prefix, rule, facts)
    yield _at_least("data.min_records", n_records, run_spec.data.min_records)
    yield _at_least("data.min_patients", n_patients, run_spec.data.min_patients)


def _ground_findings(prefix: str, rule: DatasetRule, facts: DatasetFacts | None) -> Iterator[RuleFinding]:
    """On which ground the dataset is held, where the policy demands one."""
    demanded = {"consent": rule.consent, "legal_basis": rule.legal_basis}
    held = {} if facts is None else {"consent": facts.consent, "legal_basis": facts.legal_basis}
    for key, admitted in demanded.items():
        if admitted is not None:
            value = held.get(key)
            yield RuleFinding(rule=f"{prefix}.{key}", is_met=value in admitted, value=value, limit=_listed(admitted))


def _cohort_findings(run_spec: RunSpec, policy: SitePolicy, ledger: SiteLedger) -> Iterator[RuleFinding]:
    own_pin = run_spec.cohort.pins.get(ledger.site_id)
    yield RuleFinding(
        rule="cohort.sites",
        is_met=run_spec.is_resolved and own_pin == ledger.signing_key_sha256,
        value=own_pin,
        limit=ledger.signing_key_sha256,
    )
    rule = policy.secure_aggregation
    # A run that promises less than this site demands would fail at its first sum: it is refused before any training.
    yield _at_least("secure_aggregation.min_cohort", run_spec.secure_aggregation.min_cohort, rule.min_cohort)
    smallest = SMALLEST_COHORT + rule.assumed_colluders
    yield _at_least("secure_aggregation.assumed_colluders", run_spec.secure_aggregation.min_cohort, smallest)
    n_sites = len(run_spec.cohort.sites)
    params = SecAggParams(min_cohort=rule.min_cohort, assumed_colluders=rule.assumed_colluders)
    yield _at_least("secure_aggregation.roster", n_sites, params.min_survivors(n_sites))


def _egress_finding(policy: SitePolicy, ledger: SiteLedger) -> RuleFinding:
    limit = policy.egress.max_bytes_per_round
    payload_bytes = ledger.payload_bytes
    return RuleFinding(
        rule="egress.max_bytes_per_round",
        is_met=payload_bytes is not None and payload_bytes <= limit,
        value=payload_bytes,
        limit=limit,
    )


def _first_denial(findings: Iterator[RuleFinding]) -> Allowed | Denied:
    for finding in findings:
        if not finding.is_met:
            return Denied(rule=finding.rule, value=finding.value, limit=finding.limit)
    return Allowed()


def _one_of(rule: str, value: str, admitted: frozenset[str]) -> RuleFinding:
    return RuleFinding(rule=rule, is_met=value in admitted, value=str(value), limit=_listed(admitted))


def _at_most(rule: str, value: int, limit: int) -> RuleFinding:
    return RuleFinding(rule=rule, is_met=value <= limit, value=value, limit=limit)


def _at_least(rule: str, value: int, limit: int) -> RuleFinding:
    return RuleFinding(rule=rule, is_met=value >= limit, value=value, limit=limit)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
