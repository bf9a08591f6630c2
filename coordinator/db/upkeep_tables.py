"""The tables by which the store looks after itself: commits, orphans, versions, and restores from backups."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


class CommitMarker(Base):
    """One a transaction that wrote, on PostgreSQL: says after a broken COMMIT that it was committed."""

    __tablename__ = "commit_markers"

    marker: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime]

    __table_args__ = (Index("ix_commit_markers_at", "at"),)


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
