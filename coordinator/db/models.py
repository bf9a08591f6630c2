"""The tables. One word a thing, the same as in proto, REST and log; docs/data-model names the owner of each.

Invariant: nothing here holds an update, a loss, a count or a norm of one site. What comes from one site is either a
signed message of the secure sum, a masked vector's digest, or the state of its participation.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base
from coordinator.db.identity_tables import SiteStatementRow
from coordinator.db.release_tables import (
    DatasetWithdrawal,
    Release,
    ReleaseFile,
    ReleaseMark,
    ReleaseParent,
    ReleaseSignature,
    SigningPassphrase,
)
from coordinator.db.types import SerialKey


class Site(Base):
    """An enrolled hospital agent. Its name is its identifier and is never given to another."""

    __tablename__ = "sites"

    site_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    signing_spki: Mapped[bytes | None]
    signing_key_sha256: Mapped[str | None] = mapped_column(String(64), unique=True)
    agent_version: Mapped[str | None]
    created_at: Mapped[datetime]
    enrolled_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]
    statement_floor: Mapped[int | None]
    trusted_roots_version: Mapped[int | None]

    __table_args__ = (CheckConstraint("state IN ('INVITED','ENROLLED','SUSPENDED','REVOKED')", name="state"),)


class EnrolmentCode(Base):
    """The SHA-256 of a one-time secret, and what became of it."""

    __tablename__ = "enrolment_codes"

    code_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"))
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    used_by_key_sha256: Mapped[str | None] = mapped_column(String(64))


class Certificate(Base):
    """A TLS certificate that was issued here.

    It ends for new calls when it expires, when it is revoked, or shortly after another one of its site was first used
    (``superseded_at``). ``key_sha256`` finds the answer to a renewal that is asked for again.
    """

    __tablename__ = "certificates"

    fingerprint_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), index=True)
    serial: Mapped[str] = mapped_column(String(64), unique=True)
    not_before: Mapped[datetime]
    not_after: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    pem: Mapped[bytes | None]
    key_sha256: Mapped[str | None] = mapped_column(String(64))
    root_sha256: Mapped[str | None] = mapped_column(String(64))
    first_used_at: Mapped[datetime | None]
    superseded_at: Mapped[datetime | None]


class User(Base):
    """A person with access to the REST side."""

    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class RoleGrant(Base):
    """A user holds a role."""

    __tablename__ = "role_grants"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)


class Token(Base):
    """The digest of a bearer token; ``scopes`` is NULL for all that its user's roles permit, else words by spaces."""

    __tablename__ = "tokens"

    token_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id"), index=True)
    label: Mapped[str]
    scopes: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """What was answered to a request that carried a key, so that the same request is answered the same."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    response: Mapped[bytes]
    created_at: Mapped[datetime]


class Run(Base):
    """A campaign with a frozen RunSpec, kept as the exact bytes whose digest the sites approve."""

    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    run_spec_json: Mapped[bytes]
    run_spec_sha256: Mapped[str] = mapped_column(String(64))
    layout_json: Mapped[bytes]
    layout_blob_sha256: Mapped[str] = mapped_column(String(64))
    initial_blob_sha256: Mapped[str] = mapped_column(String(64))
    public_state_version: Mapped[int] = mapped_column(default=0)
    public_state_sha256: Mapped[str] = mapped_column(String(64))
    public_state_blob_sha256: Mapped[str] = mapped_column(String(64))
    last_result_sha256: Mapped[str | None] = mapped_column(String(64))
    next_round_index: Mapped[int] = mapped_column(default=0)
    next_round_attempt: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "state IN ('DRAFT','AWAITING_SITES','ACTIVE','PAUSED','COMPLETED','CANCELLED','FAILED')", name="state"
        ),
    )


class Approval(Base):
    """A site's signed statement about a run; the latest one stands, until ``expires_at`` where it says so."""

    __tablename__ = "approvals"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    decision: Mapped[str] = mapped_column(String(16))
    statement_body: Mapped[bytes]
    statement_signature: Mapped[bytes]
    at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class Round(Base):
    """One synchronous cycle, one attempt at it. The manifest is M0, signed."""

    __tablename__ = "rounds"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    manifest_body: Mapped[bytes]
    manifest_signature: Mapped[bytes]
    opened_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    report: Mapped[dict[str, object] | None]
    state_version_after: Mapped[int | None]
    state_sha256_after: Mapped[str | None] = mapped_column(String(64))
    state_blob_sha256_after: Mapped[str | None] = mapped_column(String(64))
    scrubbed_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('PLANNED','TRAINING','EXCHANGING','FOLDING','COMMITTED','ABORTED')", name="state"),
    )


class Participation(Base):
    """One site's row in one attempt at a round. ``activity``, ``step`` and ``steps`` are all it tells of its work."""

    __tablename__ = "participations"

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    activity: Mapped[str | None] = mapped_column(String(16))
    step: Mapped[int | None]
    steps: Mapped[int | None]
    bytes_up: Mapped[int] = mapped_column(default=0)
    bytes_down: Mapped[int] = mapped_column(default=0)
    updated_at: Mapped[datetime]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_state_sha256: Mapped[str | None] = mapped_column(String(64))
    acknowledgement_body: Mapped[bytes | None]
    acknowledgement_signature: Mapped[bytes | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "round_index", "round_attempt"],
            ["rounds.run_id", "rounds.round_index", "rounds.round_attempt"],
        ),
        CheckConstraint(
            "state IN ('INVITED','TRAINING','READY','KEYED','UPLOADED','COUNTED','DECLINED','DROPPED','REJECTED')",
            name="state",
        ),
        Index("ix_participations_site_id", "site_id"),
    )


class Exchange(Base):
    """One secure sum, one attempt at it. U1 to U5 are set once each, when their phase ends, and never change."""

    __tablename__ = "exchanges"

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    invited: Mapped[list[str]]
    arrived: Mapped[list[str]]
    u1: Mapped[list[str] | None]
    u2: Mapped[list[str] | None]
    u3: Mapped[list[str] | None]
    u4: Mapped[list[str] | None]
    u5: Mapped[list[str] | None]
    opened_at: Mapped[datetime]
    phase_deadline_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    result_body: Mapped[bytes | None]
    result_signature: Mapped[bytes | None]
    sum_blob_sha256: Mapped[str | None] = mapped_column(String(64))
    sum_bytes: Mapped[int | None]
    transcript_root: Mapped[str | None] = mapped_column(String(64))
    scrubbed_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "round_index", "round_attempt"],
            ["rounds.run_id", "rounds.round_index", "rounds.round_attempt"],
        ),
        CheckConstraint(
            "state IN ('ADVERTISING','SHARING','COLLECTING','CONFIRMING','REVEALING','SUMMED','FAILED')", name="state"
        ),
    )


class ExchangeMessage(Base):
    """The exact bytes of a site's signed message in one exchange; one a kind and site, for ever.

    When its round is scrubbed, ``encoded`` keeps of an M3 the signed header and of an M9 nothing; ``sha256`` and
    ``n_bytes`` are of what was received, and ``transcript_leaf_sha256`` is the M9's leaf under the transcript's root.
    """

    __tablename__ = "exchange_messages"

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    encoded: Mapped[bytes]
    sha256: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]
    scrubbed_at: Mapped[datetime | None]
    n_bytes: Mapped[int | None]
    transcript_leaf_sha256: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "round_index", "round_attempt", "exchange_index", "exchange_attempt"],
            [
                "exchanges.run_id",
                "exchanges.round_index",
                "exchanges.round_attempt",
                "exchanges.exchange_index",
                "exchanges.exchange_attempt",
            ],
        ),
    )


class Upload(Base):
    """A masked vector on its way in, or complete: then its signed receipt is kept.

    ``scrubbed_at`` says that the vector may no longer be used, ``blob_deleted_at`` that it is gone from the blob store.
    """

    __tablename__ = "uploads"

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    exchange_attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    header_body: Mapped[bytes]
    header_signature: Mapped[bytes]
    n_bytes: Mapped[int]
    received_bytes: Mapped[int] = mapped_column(default=0)
    blob_sha256: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    receipt_body: Mapped[bytes | None]
    receipt_signature: Mapped[bytes | None]
    scrubbed_at: Mapped[datetime | None]
    blob_deleted_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "round_index", "round_attempt", "exchange_index", "exchange_attempt"],
            [
                "exchanges.run_id",
                "exchanges.round_index",
                "exchanges.round_attempt",
                "exchanges.exchange_index",
                "exchanges.exchange_attempt",
            ],
        ),
    )


class Event(Base):
    """Something that happened to a run and that its driver has yet to read, or has read."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(SerialKey, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"))
    kind: Mapped[str] = mapped_column(String(48))
    payload: Mapped[dict[str, object]]
    created_at: Mapped[datetime]
    consumed_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_events_run_id_consumed_at", "run_id", "consumed_at"),)


class OutboxEntry(Base):
    """An effect that a transition asked for: performed after its transaction, again if need be, until done."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(SerialKey, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"))
    kind: Mapped[str] = mapped_column(String(48))
    payload: Mapped[dict[str, object]]
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_try_at: Mapped[datetime | None]
    done_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_outbox_run_id_done_at", "run_id", "done_at"),)


class Lease(Base):
    """Who may step a run's machines, and until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[datetime]


class CommitMarker(Base):
    """One a transaction that wrote, on PostgreSQL: says after a broken COMMIT that it was committed."""

    __tablename__ = "commit_markers"

    marker: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime]

    __table_args__ = (Index("ix_commit_markers_at", "at"),)


class AuditRow(Base):
    """One leaf of the log: exact bytes and their leaf hash. Written once, last in its transaction."""

    __tablename__ = "audit_events"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(64))
    body: Mapped[bytes]
    leaf_sha256: Mapped[str] = mapped_column(String(64))


class AuditTip(Base):
    """The end of the log, as ``LogTip`` encodes it, so that appending costs O(log n). One row."""

    __tablename__ = "audit_tip"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    encoded: Mapped[bytes]


class AuditCheckpoint(Base):
    """A signed head of the log."""

    __tablename__ = "audit_checkpoints"

    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    head: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    body: Mapped[bytes]
    signature: Mapped[bytes]


class OrphanBlob(Base):
    """A blob that no row named when the janitor looked. One that still is not named after the grace period goes."""

    __tablename__ = "orphan_blobs"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_seen_at: Mapped[datetime]


class SchemaFloor(Base):
    """The oldest revision whose programs may work with this database. One row, written by migrations only."""

    __tablename__ = "schema_floor"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    revision: Mapped[str] = mapped_column(String(32))


class CoordinatorEpoch(Base):
    """One restore from a backup. Before the first there is no row, and the epoch is 0. The statement is signed."""

    __tablename__ = "coordinator_epochs"

    epoch: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    started_at: Mapped[datetime]
    backup_made_at: Mapped[datetime]
    restored_size: Mapped[int]
    restored_head: Mapped[str] = mapped_column(String(64))
    statement_body: Mapped[bytes]
    statement_signature: Mapped[bytes]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None]


class EpochHead(Base):
    """The highest head of this coordinator's log that a site had seen before the epoch began, as the site says it."""

    __tablename__ = "epoch_heads"

    epoch: Mapped[int] = mapped_column(Integer, ForeignKey("coordinator_epochs.epoch"), primary_key=True)
    site_id: Mapped[str] = mapped_column(String(63), ForeignKey("sites.site_id"), primary_key=True)
    seen_size: Mapped[int]
    seen_head: Mapped[str] = mapped_column(String(64))
    reported_at: Mapped[datetime]


class SiteLogHead(Base):
    """The head of a site's own audit log that this coordinator holds, with the M1 in which the site signed it."""

    __tablename__ = "site_log_heads"

    site_id: Mapped[str] = mapped_column(String(63), ForeignKey("sites.site_id"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[str] = mapped_column(String(64))
    statement: Mapped[bytes]
    seen_at: Mapped[datetime]


__all__ = [
    "Approval",
    "AuditCheckpoint",
    "AuditRow",
    "AuditTip",
    "Base",
    "Certificate",
    "CommitMarker",
    "CoordinatorEpoch",
    "DatasetWithdrawal",
    "EnrolmentCode",
    "EpochHead",
    "Event",
    "Exchange",
    "ExchangeMessage",
    "IdempotencyKey",
    "Lease",
    "OrphanBlob",
    "OutboxEntry",
    "Participation",
    "Release",
    "ReleaseFile",
    "ReleaseMark",
    "ReleaseParent",
    "ReleaseSignature",
    "RoleGrant",
    "Round",
    "Run",
    "SchemaFloor",
    "SigningPassphrase",
    "Site",
    "SiteLogHead",
    "SiteStatementRow",
    "Token",
    "Upload",
    "User",
]
