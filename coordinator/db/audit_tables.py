"""The tables of the audit log: its leaves, its end, and the signed heads of it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


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
