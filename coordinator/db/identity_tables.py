"""The tables of the sites: who they are, how they prove it, and what they said of themselves last."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


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


class SiteLogHead(Base):
    """The head of a site's own audit log that this coordinator holds, with the M1 in which the site signed it."""

    __tablename__ = "site_log_heads"

    site_id: Mapped[str] = mapped_column(String(63), ForeignKey("sites.site_id"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[str] = mapped_column(String(64))
    statement: Mapped[bytes]
    seen_at: Mapped[datetime]


class SiteStatementRow(Base):
    """One of a site's last statements: its place, its digest and that of the one before. Two copies fork here."""

    __tablename__ = "site_statements"

    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    counter: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    previous_sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
