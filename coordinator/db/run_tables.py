"""The tables of the runs: what was specified and approved, and what the driver does about it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base
from coordinator.db.types import SerialKey


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
