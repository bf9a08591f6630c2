"""The tables of a round: its attempts, who takes part, and its secure sums, message by message.

Invariant: what comes from one site is a signed message of the secure sum, a masked vector's digest, or a state.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


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
