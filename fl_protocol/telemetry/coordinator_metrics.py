"""The coordinator's metrics. Each process of a coordinator exposes its own; what is counted is summed over them."""

from __future__ import annotations

from fl_protocol.telemetry.metric import FAST_S, SLOW_S, Label, Metric, MetricKind, Unit

_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_C = "wardround_coordinator"
_SITE_ID = Label(name="site_id", source="the name that the site was invited under")
_ABORT_REASONS = (
    "quorum-not-reached",
    "exchange-attempts-exhausted",
    "dealer-blamed",
    "too-few-confirmed",
    "too-few-revealed",
    "unmasking-refused",
    "implausible-sum",
    "fold-refused",
    "effect-failed",
    "run-cancelled",
    "coordinator-restored",
)
_EXCHANGE_FAILURES = (
    "too-few-advertised",
    "too-few-shared",
    "too-few-uploaded",
    "too-few-confirmed",
    "too-few-revealed",
    "dealer-blamed",
    "unmasking-refused",
    "implausible-sum",
    "effect-failed",
    "round-ended",
)

BUILD = Metric(
    name=f"{_C}_build_info",
    kind=_GAUGE,
    help="Always 1; which version runs here, and in which roles.",
    labels=(Label(name="version", source="the distribution"), Label(name="roles", source="`serve --roles`")),
    is_read_at_scrape=True,
)
RUNS = Metric(
    name=f"{_C}_runs",
    kind=_GAUGE,
    help="Runs by state; the same from every process of a coordinator.",
    labels=(
        Label(
            name="state",
            values=("DRAFT", "AWAITING_SITES", "ACTIVE", "PAUSED", "COMPLETED", "CANCELLED", "FAILED"),
        ),
    ),
    is_read_at_scrape=True,
)
ROUNDS_OPEN = Metric(
    name=f"{_C}_rounds_open",
    kind=_GAUGE,
    help="Rounds that are open, by state; the same from every process.",
    labels=(Label(name="state", values=("PLANNED", "TRAINING", "EXCHANGING", "FOLDING")),),
    is_read_at_scrape=True,
)
ROUNDS = Metric(
    name=f"{_C}_rounds_total",
    kind=_COUNTER,
    help="Attempts at rounds that ended COMMITTED, in this process.",
)
ROUNDS_ABORTED = Metric(
    name=f"{_C}_rounds_aborted_total",
    kind=_COUNTER,
    help="Attempts at rounds that ended ABORTED, in this process, by reason.",
    labels=(Label(name="reason", values=_ABORT_REASONS),),
)
PHASE_SECONDS = Metric(
    name=f"{_C}_phase_seconds",
    kind=_HISTOGRAM,
    help="How long a round stood in a phase of its own or of its exchange, where this process saw both ends.",
    labels=(
        Label(
            name="phase",
            values=("training", "advertising", "sharing", "collecting", "confirming", "revealing", "folding"),
        ),
    ),
    unit=Unit.SECONDS,
    buckets=SLOW_S,
)
EXCHANGES = Metric(
    name=f"{_C}_exchanges_total",
    kind=_COUNTER,
    help="Exchanges whose sum was published, in this process.",
)
EXCHANGES_FAILED = Metric(
    name=f"{_C}_exchanges_failed_total",
    kind=_COUNTER,
    help="Exchanges that FAILED, in this process, by reason.",
    labels=(Label(name="reason", values=_EXCHANGE_FAILURES),),
)
UPLOADS_IN_FLIGHT = Metric(
    name=f"{_C}_uploads_in_flight",
    kind=_GAUGE,
    help="Masked uploads whose stream is open in this process.",
    is_read_at_scrape=True,
)
UPLOADS = Metric(
    name=f"{_C}_uploads_total",
    kind=_COUNTER,
    help="Masked uploads that ended here, by outcome.",
    labels=(Label(name="outcome", values=("accepted", "refused")),),
)
UPLOAD_BYTES = Metric(
    name=f"{_C}_upload_bytes_total",
    kind=_COUNTER,
    help="Bytes of the masked uploads that were accepted here: the announced length of the vector.",
    unit=Unit.BYTES,
)
SITES = Metric(
    name=f"{_C}_sites",
    kind=_GAUGE,
    help="Sites by state; the same from every process.",
    labels=(Label(name="state", values=("INVITED", "ENROLLED", "SUSPENDED", "REVOKED")),),
    is_read_at_scrape=True,
)
SITE_LAST_SEEN = Metric(
    name=f"{_C}_site_last_seen_age_seconds",
    kind=_GAUGE,
    help="How long ago an ENROLLED site was last heard of (noted every 30 s); the same from every process.",
    labels=(_SITE_ID,),
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)
OUTBOX = Metric(
    name=f"{_C}_outbox_effects",
    kind=_GAUGE,
    help="Effects that wait to be performed; the same from every process.",
    is_read_at_scrape=True,
)
OUTBOX_AGE = Metric(
    name=f"{_C}_outbox_oldest_age_seconds",
    kind=_GAUGE,
    help="How long the oldest effect has waited; 0 where none does.",
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)
EFFECT_FAILURES = Metric(
    name=f"{_C}_effect_failures_total",
    kind=_COUNTER,
    help="Tries at an effect that failed in this process; each is tried again.",
    labels=(Label(name="kind", values=("compute-sum", "fold-round", "create-release")),),
)
LEASE_LOSSES = Metric(
    name=f"{_C}_lease_losses_total",
    kind=_COUNTER,
    help="Leases on runs that this driver held and another one took.",
)
RUNS_HELD = Metric(
    name=f"{_C}_runs_held",
    kind=_GAUGE,
    help="Runs whose lease this process's driver held at its last turn.",
)
DRIVER_TURN_AGE = Metric(
    name=f"{_C}_driver_last_turn_age_seconds",
    kind=_GAUGE,
    help="How long ago this process's driver last looked at all runs; absent where the process is no driver.",
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)
AUDIT_APPENDS = Metric(
    name=f"{_C}_audit_appends_total",
    kind=_COUNTER,
    help="Events that this process recorded in the audit log.",
)
AUDIT_FAILURES = Metric(
    name=f"{_C}_audit_failures_total",
    kind=_COUNTER,
    help="Transactions that could not be kept, so that nothing happened: no record, no action.",
    labels=(
        Label(
            name="code",
            values=(
                "database-busy",
                "database-full",
                "database-unavailable",
                "database-unwritable",
                "audit-log-damaged",
            ),
        ),
    ),
)
AUDIT_ROWS = Metric(
    name=f"{_C}_audit_rows",
    kind=_GAUGE,
    help="The size of the audit log; the same from every process, and it never falls but by a restore.",
    is_read_at_scrape=True,
)
CERTIFICATE_LEFT = Metric(
    name=f"{_C}_certificate_seconds_left",
    kind=_GAUGE,
    help="How long a certificate of this coordinator's still lives; negative once it has ended.",
    labels=(Label(name="certificate", values=("root", "issuer", "enrolment")),),
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)
BLOB_FREE = Metric(
    name=f"{_C}_blob_store_free_bytes",
    kind=_GAUGE,
    help="How many more bytes the blob store takes; absent where that cannot be known (S3).",
    unit=Unit.BYTES,
    is_read_at_scrape=True,
)
DISK_FREE = Metric(
    name=f"{_C}_disk_free_bytes",
    kind=_GAUGE,
    help="Free bytes of the file system that holds the coordinator's folder.",
    unit=Unit.BYTES,
    is_read_at_scrape=True,
)
DATABASE_UP = Metric(
    name=f"{_C}_database_up",
    kind=_GAUGE,
    help="1 where the database answered this very scrape, else 0; then what is read from it is absent.",
    is_read_at_scrape=True,
)
DB_CONNECTIONS = Metric(
    name=f"{_C}_db_connections",
    kind=_GAUGE,
    help="Connections of this process's pool that are in use.",
    is_read_at_scrape=True,
)
DB_CONNECTIONS_LIMIT = Metric(
    name=f"{_C}_db_connections_limit",
    kind=_GAUGE,
    help="The most connections that this process's pool opens.",
    is_read_at_scrape=True,
)
REST_REQUESTS = Metric(
    name=f"{_C}_rest_requests_total",
    kind=_COUNTER,
    help="Answers of the REST listener, by method, route and status.",
    labels=(
        Label(name="method", source="HTTP's own; any other is `other`"),
        Label(name="route", source="the path as the OpenAPI document has it; any other is `unmatched`"),
        Label(name="status", source="the HTTP status"),
    ),
)
REST_SECONDS = Metric(
    name=f"{_C}_rest_request_seconds",
    kind=_HISTOGRAM,
    help="How long REST took to begin its answer.",
    labels=(Label(name="method", source="as above"), Label(name="route", source="as above")),
    unit=Unit.SECONDS,
    buckets=FAST_S,
)
CALLS = Metric(
    name=f"{_C}_calls_total",
    kind=_COUNTER,
    help="Calls of sites that ended, by method, transport and status.",
    labels=(
        Label(name="call", source="the method's name in `protos/`; any other is `unknown`"),
        Label(name="transport", values=("grpc", "http1")),
        Label(name="status", source="the gRPC status, `OK` or the refusal's"),
    ),
)
CALL_SECONDS = Metric(
    name=f"{_C}_call_seconds",
    kind=_HISTOGRAM,
    help="How long a call of a site lasted, long polls and uploads included.",
    labels=(Label(name="call", source="as above"), Label(name="transport", values=("grpc", "http1"))),
    unit=Unit.SECONDS,
    buckets=FAST_S,
)
SCRUB_BACKLOG = Metric(
    name=f"{_C}_scrub_backlog_rounds",
    kind=_GAUGE,
    help="Rounds whose audit window has closed and that the last pass of this process's janitor left unscrubbed.",
)
SCRUB_PASSES = Metric(
    name=f"{_C}_scrub_passes_total",
    kind=_COUNTER,
    help="Passes that the janitor made in this process while it held the lease.",
)
SCRAPE_READ = Metric(
    name=f"{_C}_scrape_read_seconds",
    kind=_GAUGE,
    help="How long the reads of this scrape took.",
    unit=Unit.SECONDS,
    is_read_at_scrape=True,
)

COORDINATOR_METRICS: tuple[Metric, ...] = (
    BUILD,
    RUNS,
    ROUNDS_OPEN,
    ROUNDS,
    ROUNDS_ABORTED,
    PHASE_SECONDS,
    EXCHANGES,
    EXCHANGES_FAILED,
    UPLOADS_IN_FLIGHT,
    UPLOADS,
    UPLOAD_BYTES,
    SITES,
    SITE_LAST_SEEN,
    OUTBOX,
    OUTBOX_AGE,
    EFFECT_FAILURES,
    LEASE_LOSSES,
    RUNS_HELD,
    DRIVER_TURN_AGE,
    AUDIT_APPENDS,
    AUDIT_FAILURES,
    AUDIT_ROWS,
    CERTIFICATE_LEFT,
    BLOB_FREE,
    DISK_FREE,
    DATABASE_UP,
    DB_CONNECTIONS,
    DB_CONNECTIONS_LIMIT,
    REST_REQUESTS,
    REST_SECONDS,
    CALLS,
    CALL_SECONDS,
    SCRUB_BACKLOG,
    SCRUB_PASSES,
    SCRAPE_READ,
)
