"""The tables of a site: what it registered, approved, joined, computed and recorded. Columns only, no behaviour.

Instants are texts of ``instants``; digests are hexadecimal texts; bodies whose digest or signature counts are bytes and
are never rendered again.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 3
"""Written to SQLite's ``user_version``; rises with each change of the tables. A table or a nullable column more is all
that a version adds: ``upgrades`` brings older files up."""


class SiteTable(DeclarativeBase):
    """Base of the site's tables."""


class DatasetRow(SiteTable):
    """A registered dataset. Re-registering after a withdrawal is a new row."""

    __tablename__ = "datasets"
    __table_args__ = (
        # Invariant: one dataset of a name is in use at a time.
        Index("datasets_one_in_use", "name", unique=True, sqlite_where=text("withdrawn_at IS NULL")),
    )

    dataset_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String)
    path: Mapped[str] = mapped_column(String)
    format: Mapped[str] = mapped_column(String)
    purposes_json: Mapped[str] = mapped_column(String)
    description: Mapped[str | None] = mapped_column(String)
    sha256: Mapped[str] = mapped_column(String)
    n_records: Mapped[int] = mapped_column()
    n_patients: Mapped[int] = mapped_column()
    registered_at: Mapped[str] = mapped_column(String)
    registered_by: Mapped[str] = mapped_column(String)
    withdrawn_at: Mapped[str | None] = mapped_column(String)
    schema_json: Mapped[str | None] = mapped_column(String)
    patient_field: Mapped[str | None] = mapped_column(String)
    legal_basis: Mapped[str | None] = mapped_column(String)
    consent: Mapped[str | None] = mapped_column(String)
    expires_on: Mapped[str | None] = mapped_column(String)


class RunLedgerRow(SiteTable):
    """A run as this site knows it, from the first sight on."""

    __tablename__ = "run_ledger"

    run_id: Mapped[str] = mapped_column(String, primary_key=True)
    name: Mapped[str] = mapped_column(String)
    state: Mapped[str] = mapped_column(String)
    reason: Mapped[str | None] = mapped_column(String)
    run_spec_sha256: Mapped[str] = mapped_column(String)
    run_spec_json: Mapped[bytes] = mapped_column(LargeBinary)
    layout_json: Mapped[bytes] = mapped_column(LargeBinary)
    initial_state_sha256: Mapped[str] = mapped_column(String)
    first_seen_at: Mapped[str] = mapped_column(String)
    approved_at: Mapped[str | None] = mapped_column(String)
    approved_by: Mapped[str | None] = mapped_column(String)
    dataset: Mapped[str | None] = mapped_column(String)
    purpose: Mapped[str | None] = mapped_column(String)
    expires_at: Mapped[str | None] = mapped_column(String)


class ApprovalRow(SiteTable):
    """A signed statement on a run. Rows are only added; ``sent_at`` is set once the coordinator has it."""

    __tablename__ = "approvals"

    approval_id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run_ledger.run_id"))
    decision: Mapped[str] = mapped_column(String)
    statement_body: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    decided_at: Mapped[str] = mapped_column(String)
    decided_by: Mapped[str] = mapped_column(String)
    is_automatic: Mapped[bool] = mapped_column()
    accepted_unlisted_json: Mapped[str] = mapped_column(String)
    reason: Mapped[str | None] = mapped_column(String)
    sent_at: Mapped[str | None] = mapped_column(String)
    expires_at: Mapped[str | None] = mapped_column(String)
    policy_sha256: Mapped[str | None] = mapped_column(String)


class JoinedRoundRow(SiteTable):
    """A round that this site joined, and what it did there."""

    __tablename__ = "joined_rounds"

    run_id: Mapped[str] = mapped_column(String, primary_key=True)
    round_index: Mapped[int] = mapped_column(primary_key=True)
    round_attempt: Mapped[int] = mapped_column(primary_key=True)
    manifest_digest: Mapped[str] = mapped_column(String)
    public_state_sha256: Mapped[str] = mapped_column(String)
    payload_sha256: Mapped[str | None] = mapped_column(String)
    state: Mapped[str] = mapped_column(String)
    m9_sent: Mapped[bool] = mapped_column(default=False)
    u3_digest: Mapped[str | None] = mapped_column(String)
    m9_exchange: Mapped[bytes | None] = mapped_column(LargeBinary)
    h_survivors: Mapped[str | None] = mapped_column(String)
    joined_at: Mapped[str] = mapped_column(String)
    updated_at: Mapped[str] = mapped_column(String)


class PublicStateRow(SiteTable):
    """A public state that this site computed from published sums; ``path`` is where its bytes lie."""

    __tablename__ = "public_states"

    run_id: Mapped[str] = mapped_column(String, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String)
    path: Mapped[str] = mapped_column(String)
    result_sha256: Mapped[str | None] = mapped_column(String)
    created_at: Mapped[str] = mapped_column(String)


class OneShotFlagRow(SiteTable):
    """A step that may be taken once in a context. Invariant: the primary key makes the second one fail."""

    __tablename__ = "one_shot_flags"

    kind: Mapped[str] = mapped_column(String, primary_key=True)
    context: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    payload_sha256: Mapped[str | None] = mapped_column(String)
    at: Mapped[str] = mapped_column(String)


class MaskedCohortRow(SiteTable):
    """Among whom, and under which threshold, a payload that carries an evaluation was masked in one exchange."""

    __tablename__ = "masked_cohorts"

    evaluation_sha256: Mapped[str] = mapped_column(String, primary_key=True)
    context: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    sites_json: Mapped[str] = mapped_column(String)
    threshold: Mapped[int] = mapped_column()
    at: Mapped[str] = mapped_column(String)


class RevealedEvaluationRow(SiteTable):
    """An evaluation that was in a sum which this site helped to unmask. Invariant: the survivors never change."""

    __tablename__ = "revealed_evaluations"

    evaluation_sha256: Mapped[str] = mapped_column(String, primary_key=True)
    context: Mapped[bytes] = mapped_column(LargeBinary)
    sites_json: Mapped[str] = mapped_column(String)
    at: Mapped[str] = mapped_column(String)


class SiteSwitchRow(SiteTable):
    """A switch of the whole site that a steward sets."""

    __tablename__ = "site_switches"

    name: Mapped[str] = mapped_column(String, primary_key=True)
    is_on: Mapped[bool] = mapped_column()
    set_at: Mapped[str] = mapped_column(String)
    set_by: Mapped[str] = mapped_column(String)


class AuditEventRow(SiteTable):
    """One event of the audit log: the exact bytes, and their leaf hash."""

    __tablename__ = "audit_events"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    leaf_sha256: Mapped[str] = mapped_column(String)


class AuditCheckpointRow(SiteTable):
    """A signed statement of the log's size and head."""

    __tablename__ = "audit_checkpoints"

    size: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)


class AuditTipRow(SiteTable):
    """The log's tip, from which the next row and head follow without reading the others. Invariant: one row."""

    __tablename__ = "audit_tip"
    __table_args__ = (CheckConstraint("one = 1"),)

    one: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tip: Mapped[bytes] = mapped_column(LargeBinary)
