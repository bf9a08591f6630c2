"""The rules a hospital writes, as frozen values, and the strict parse that makes them from a document.

Default deny: what is left out is not permitted. Three restrictions may be left out: ``hours``, which narrows *when* a
permitted run trains, and ``algorithms`` and ``local_rules``, without which a policy means what it meant before there
were these keys. Nothing here weakens the protocol's own minimum of three sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from enum import StrEnum
from types import MappingProxyType

from fl_protocol.spec.secagg_params import SMALLEST_COHORT
from site_agent.policy.reading import PolicyFault, PolicyFaultsError, SectionReader, mapping_or_fault

ANY_PURPOSE = "any"
"""In a list of purposes: whatever a run states as its purpose."""

DEFAULT_LIFETIME_DAYS = 90
"""How long an approval holds where the policy does not say."""

LONGEST_LIFETIME_DAYS = 3650

OLDEST_ALGORITHMS = frozenset({"fedavg-lora", "fedmed", "thresholded-counts"})
"""What a policy without ``algorithms`` admits: what there was when the key came. Invariant: it never grows."""

OLDEST_LOCAL_RULES = frozenset({"plain", "fedprox", "scaffold"})
"""The same for ``local_rules``. Invariant: it never grows."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_HOURS = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


DEFAULT_SMALLEST_CELL = 5
"""Patients: the usual smallest cell of published health statistics."""


class ApprovalMode(StrEnum):
    """Who says yes to a run that is inside all rules."""

    MANUAL = "manual"
    AUTOMATIC = "automatic"


class Permission(StrEnum):
    """Whether something is permitted."""

    DENIED = "denied"
    ALLOWED = "allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRule:
    """Which adapters may be trained. ``max_rank`` 0 admits none."""

    kinds: frozenset[str] = frozenset()
    max_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRule:
    """What one registered dataset may be used for, how large it must be, and on which ground it is held.

    Attributes:
        purposes: what it may be used for.
        min_records: the fewest records that it must hold.
        min_patients: the fewest patients.
        consent: one of these consent tags must be in its registration; None demands none.
        legal_basis: one of these legal bases must be in its registration; None demands none.
    """

    purposes: frozenset[str] = frozenset()
    min_records: int = 1
    min_patients: int = 0
    consent: frozenset[str] | None = None
    legal_basis: frozenset[str] | None = None


class SumCheckMode(StrEnum):
    """How much of a published sum this site computes again before it uses it."""

    SAMPLED = "sampled"
    """A few chunks that nobody else can foretell."""
    WHOLE = "whole"
    """All of it: every survivor's masked vector is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRule:
    """How many sites must stand behind a sum. Invariant: never fewer than the protocol demands."""

    min_cohort: int = SMALLEST_COHORT
    assumed_colluders: int = 0
    check_sums: SumCheckMode = SumCheckMode.SAMPLED

    def __post_init__(self) -> None:
        if self.min_cohort < SMALLEST_COHORT or self.assumed_colluders < 0:
            path = "secure_aggregation"
            message = f"min_cohort is at least {SMALLEST_COHORT} and assumed_colluders at least 0"
            raise PolicyFaultsError((PolicyFault(path=path, message=message),))

    @property
    def smallest_cohort(self) -> int:
        """The fewest sites whose sum protects one of them: ``max(min_cohort, 3 + assumed_colluders)``."""
        return max(self.min_cohort, SMALLEST_COHORT + self.assumed_colluders)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyRule:
    """What is demanded of differential privacy; the two figures bind the mechanisms of a later version.

    ``smallest_cell`` is about runs that count: a count of fewer patients must not leave, not even inside a sum.
    ``rare_codes_in_sums`` is, too: whether whoever has the sum may see codes of fewer patients than the run publishes.
    """

    without_dp: Permission = Permission.DENIED
    rare_codes_in_sums: Permission = Permission.DENIED
    smallest_cell: int = DEFAULT_SMALLEST_CELL
    max_epsilon_per_dataset: float | None = None
    delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """How many bytes of masked payload may leave in one round. 0 lets nothing leave."""

    max_bytes_per_round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingHours:
    """A stretch of the day in the site's local time; it may run over midnight. Equal ends mean the whole day."""

    begins: time
    ends: time

    def admits(self, local_time: time) -> bool:
        """Whether training may start at this time of day; the end itself is outside."""
        now = local_time.replace(tzinfo=None)
        if self.begins < self.ends:
            return self.begins <= now < self.ends
        return now >= self.begins or now < self.ends

    def __str__(self) -> str:
        """As it is written in the policy."""
        return f"{self.begins:%H:%M}-{self.ends:%H:%M}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """All rules of one site. Without any argument it permits nothing."""

    tasks: frozenset[str] = frozenset()
    base_models: frozenset[str] = frozenset()
    adapters: AdapterRule = field(default_factory=AdapterRule)
    algorithms: frozenset[str] = OLDEST_ALGORITHMS
    local_rules: frozenset[str] = OLDEST_LOCAL_RULES
    datasets: Mapping[str, DatasetRule] = field(default_factory=dict)
    secure_aggregation: CohortRule = field(default_factory=CohortRule)
    privacy: PrivacyRule = field(default_factory=PrivacyRule)
    egress: EgressRule = field(default_factory=EgressRule)
    hours: TrainingHours | None = None
    approval: ApprovalMode = ApprovalMode.MANUAL
    approval_lifetime_days: int = DEFAULT_LIFETIME_DAYS

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasets", MappingProxyType(dict(self.datasets)))


def parse_policy(document: Mapping[str, object]) -> SitePolicy:
    """Read a policy document.

    Args:
        document: what the YAML file holds; an absent section permits nothing, but for absent ``algorithms`` and
            ``local_rules``, which permit the oldest ones.

    Raises:
        PolicyFaultsError: something is wrong; the error lists every fault with its path.
    """
    faults: list[PolicyFault] = []
    reader = SectionReader(document=mapping_or_fault(document, path="", faults=faults), path="", faults=faults)
    policy = SitePolicy(
        tasks=reader.names("tasks"),
        base_models=_base_models(reader),
        adapters=_adapters(reader.section("adapters")),
        algorithms=reader.names("algorithms") if "algorithms" in reader.document else OLDEST_ALGORITHMS,
        local_rules=reader.names("local_rules") if "local_rules" in reader.document else OLDEST_LOCAL_RULES,
        datasets=_datasets(reader.section("datasets")),
        secure_aggregation=_cohort(reader.section("secure_aggregation")),
        privacy=_privacy(reader.section("privacy")),
        egress=_egress(reader.section("egress")),
        hours=_hours(reader.section("hours")),
        approval=reader.choice("approval", default=ApprovalMode.MANUAL),
        approval_lifetime_days=_lifetime(reader),
    )
    reader.refuse_unknown()
    if faults:
        raise PolicyFaultsError(tuple(faults))
    return policy


def _base_models(reader: SectionReader) -> frozenset[str]:
    digests: set[str] = set()
    for text in sorted(reader.names("base_models")):
        match = _DIGEST.fullmatch(text)
        if match is None:
            message = f"{text[:80]!r} is no digest; write sha256: and 64 characters 0-9, a-f"
            reader.note("base_models", message)
        else:
            digests.add(match.group(1))
    return frozenset(digests)


def _adapters(reader: SectionReader) -> AdapterRule:
    rule = AdapterRule(kinds=reader.names("kinds"), max_rank=reader.integer("max_rank", default=0, at_least=0))
    reader.refuse_unknown()
    return rule


def _datasets(reader: SectionReader) -> dict[str, DatasetRule]:
    rules: dict[str, DatasetRule] = {}
    for name, member in reader.sections().items():
        rules[name] = DatasetRule(
            purposes=member.names("purposes"),
            min_records=member.integer("min_records", default=1, at_least=1),
            min_patients=member.integer("min_patients", default=0, at_least=0),
            consent=_demanded(member, "consent"),
            legal_basis=_demanded(member, "legal_basis"),
        )
        member.refuse_unknown()
    return rules


def _demanded(reader: SectionReader, key: str) -> frozenset[str] | None:
    """A list of which one must be met. An empty one, unlike an absent one, is met by nothing."""
    return reader.names(key) if key in reader.document else None


def _lifetime(reader: SectionReader) -> int:
    days = reader.integer("approval_lifetime_days", default=DEFAULT_LIFETIME_DAYS, at_least=1)
    if days > LONGEST_LIFETIME_DAYS:
        reader.note("approval_lifetime_days", f"is {days}, and must be at most {LONGEST_LIFETIME_DAYS}")
    return days


def _cohort(reader: SectionReader) -> CohortRule:
    rule = CohortRule(
        min_cohort=reader.integer("min_cohort", default=SMALLEST_COHORT, at_least=SMALLEST_COHORT),
        assumed_colluders=reader.integer("assumed_colluders", default=0, at_least=0),
        check_sums=reader.choice("check_sums", default=SumCheckMode.SAMPLED),
    )
    reader.refuse_unknown()
    return rule


def _privacy(reader: SectionReader) -> PrivacyRule:
    rule = PrivacyRule(
        without_dp=reader.choice("without_dp", default=Permission.DENIED),
        rare_codes_in_sums=reader.choice("rare_codes_in_sums", default=Permission.DENIED),
        smallest_cell=reader.integer("smallest_cell", default=DEFAULT_SMALLEST_CELL, at_least=1),
        max_epsilon_per_dataset=reader.positive_number("max_epsilon_per_dataset"),
        delta=reader.positive_number("delta"),
    )
    if rule.delta is not None and rule.delta >= 1:
        reader.note("delta", "is a probability, below 1")
    reader.refuse_unknown()
    return rule


def _egress(reader: SectionReader) -> EgressRule:
    rule = EgressRule(max_bytes_per_round=reader.integer("max_bytes_per_round", default=0, at_least=0))
    reader.refuse_unknown()
    return rule


def _hours(reader: SectionReader) -> TrainingHours | None:
    text = reader.text("train")
    reader.refuse_unknown()
    if text is None:
        return None
    match = _HOURS.fullmatch(text.strip())
    begins = _time_of_day(match.group(1), match.group(2)) if match else None
    ends = _time_of_day(match.group(3), match.group(4)) if match else None
    if begins is None or ends is None:
        reader.note("train", f'is {text[:80]!r}, and must look like "20:00-06:00"')
        return None
    return TrainingHours(begins=begins, ends=ends)


def _time_of_day(hours: str, minutes: str) -> time | None:
    if (hours, minutes) == ("24", "00"):
        return time(0, 0)
    try:
        return time(int(hours), int(minutes))
    except ValueError:
        return None
