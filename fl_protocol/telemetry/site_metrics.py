"""A site agent's metrics, for the hospital's own eyes; off by default.

Invariant: nothing here is computed from patient data. No loss, no count of records or patients, no norm; a reason is
one of the names listed here, and never a text that a trainer or the coordinator chose.
"""

from __future__ import annotations

from fl_protocol.telemetry.metric import SLOW_S, Label, Metric, MetricKind, Unit

_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_S = "wardround_site"

POLICY_RULES: tuple[str, ...] = (
    "tasks",
    "base_models",
    "adapters.kinds",
    "adapters.max_rank",
    "datasets",
    "datasets.*.registered",
    "datasets.*.purposes",
    "datasets.*.min_records",
    "datasets.*.min_patients",
    "datasets.*.expires_on",
    "datasets.*.consent",
    "datasets.*.legal_basis",
    "data.min_records",
    "data.min_patients",
    "cohort.sites",
    "secure_aggregation.min_cohort",
    "secure_aggregation.assumed_colluders",
    "secure_aggregation.roster",
    "privacy.without_dp",
    "privacy.smallest_cell",
    "egress.max_bytes_per_round",
    "approval",
    "peers",
    "hours.train",
    "approval-expired",
    "approval_lifetime_days",
    "other",
)
"""The policy's rules as a label has them: a dataset's own name is left out."""
REFUSED_ROUNDS: tuple[str, ...] = (
    "policy",
    "policy-unreadable",
    "site-paused",
    "run-withdrawn",
    "run-ended",
    "run-not-approved",
    "dataset-missing",
    "site-disk-full",
    "history-forked",
    "history-unproven",
    "other",
)
"""Why this site refused a round, as a label has it."""


def rule_label(rule: str) -> str:
    """A policy rule as a label: without the dataset's name, and ``other`` where it is none of the list."""
    parts = rule.split(".")
    if parts[0] == "datasets" and len(parts) >= 3:
        rule = f"datasets.*.{parts[-1]}"
    return rule if rule in POLICY_RULES else "other"


def refusal_label(reason: str) -> str:
    """Why a round was refused, as a label: a rule of the policy is ``policy``; what is not listed is ``other``."""
    if reason in REFUSED_ROUNDS:
        return reason
    return "policy" if rule_label(reason) != "other" else "other"


BUILD = Metric(
    name=f"{_S}_build_info",
    kind=_GAUGE,
    help="Always 1; which version runs here.",
    labels=(Label(name="version", source="the distribution"),),
    is_read_at_scrape=True,
)
CONNECTED = Metric(
    name=f"{_S}_connected",
    kind=_GAUGE,
    help="1 where the coordinator answered the last call, else 0.",
    is_read_at_scrape=True,
)
RECORDING = Metric(
    name=f"{_S}_recording",
    kind=_GAUGE,
    help="1 where the last event could be recorded, else 0: then the agent does nothing.",
    is_read_at_scrape=True,
)
IN_ROUND = Metric(
    name=f"{_S}_in_round",
    kind=_GAUGE,
    help="1 while this site works on a round.",
    is_read_at_scrape=True,
)
ROUNDS = Metric(
    name=f"{_S}_rounds_total",
    kind=_COUNTER,
    help="Rounds that are over for this site, by outcome.",
    labels=(Label(name="outcome", values=("settled", "declined", "failed", "abandoned", "other")),),
)
REFUSALS = Metric(
    name=f"{_S}_rounds_refused_total",
    kind=_COUNTER,
    help="Rounds that this site refused to join, by reason.",
    labels=(Label(name="reason", values=REFUSED_ROUNDS),),
)
POLICY_DENIALS = Metric(
    name=f"{_S}_policy_denials_total",
    kind=_COUNTER,
    help="Times that the policy said no to a round, by the rule that did.",
    labels=(Label(name="rule", values=POLICY_RULES),),
)
JOB_SECONDS = Metric(
    name=f"{_S}_job_seconds",
    kind=_HISTOGRAM,
    help="How long the trainer's jobs took, by outcome.",
    labels=(Label(name="outcome", values=("done", "failed", "stopped")),),
    unit=Unit.SECONDS,
    buckets=SLOW_S,
)
TRAINER_DEATHS = Metric(
    name=f"{_S}_trainer_deaths_total",
    kind=_COUNTER,
    help="Trainers that ended without closing their job, by how: killed is most often memory.",
    labels=(Label(name="cause", values=("killed", "hung", "exited", "restarted")),),
)
UPLOAD_BYTES = Metric(
    name=f"{_S}_upload_bytes_total",
    kind=_COUNTER,
    help="Bytes of masked uploads that were handed to the line, resent ones included.",
    unit=Unit.BYTES,
)
UPLOAD_RESUMES = Metric(
    name=f"{_S}_upload_resumes_total",
    kind=_COUNTER,
    help="Uploads that were interrupted and gone on with.",
)
CERTIFICATE_LEFT = Metric(
    name=f"{_S}_certificate_seconds_left",
    kind=_GAUGE,
    help="How long this site's certificate still lives; negative once it has ended.",
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)
DISK_FREE = Metric(
    name=f"{_S}_disk_free_bytes",
    kind=_GAUGE,
    help="Free bytes of the file system that holds the state folder.",
    unit=Unit.BYTES,
    is_read_at_scrape=True,
)
AUDIT_ROWS = Metric(
    name=f"{_S}_audit_rows",
    kind=_GAUGE,
    help="The size of this site's audit log; it never falls.",
    is_read_at_scrape=True,
)
AUDIT_FAILURES = Metric(
    name=f"{_S}_audit_failures_total",
    kind=_COUNTER,
    help="Transactions that could not be kept, so that nothing happened.",
    labels=(Label(name="code", values=("site-disk-full", "audit-log-damaged", "other")),),
)
SPOOLED = Metric(
    name=f"{_S}_spooled_uploads",
    kind=_GAUGE,
    help="Masked uploads that lie in the journal, because their round is not over.",
    is_read_at_scrape=True,
)
SPOOL_AGE = Metric(
    name=f"{_S}_spool_oldest_age_seconds",
    kind=_GAUGE,
    help="How old the oldest of them is; 0 where there is none.",
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)

SITE_METRICS: tuple[Metric, ...] = (
    BUILD,
    CONNECTED,
    RECORDING,
    IN_ROUND,
    ROUNDS,
    REFUSALS,
    POLICY_DENIALS,
    JOB_SECONDS,
    TRAINER_DEATHS,
    UPLOAD_BYTES,
    UPLOAD_RESUMES,
    CERTIFICATE_LEFT,
    DISK_FREE,
    AUDIT_ROWS,
    AUDIT_FAILURES,
    SPOOLED,
    SPOOL_AGE,
)
