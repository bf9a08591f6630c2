"""The tables of the release gate: what was made, who signed it, what it came from, what became of that."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


class Release(Base):
    """An adapter on its way out, with its signed manifest.

    ``continuation_sha256`` is the digest of the initial state by which a run begins from this adapter;
    ``approvals_body`` are the statements of those who signed, written and signed once, when it is published.
    """

    __tablename__ = "releases"

    release_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    manifest: Mapped[bytes]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    signature: Mapped[bytes]
    created_at: Mapped[datetime]
    approved_by: Mapped[str | None]
    approved_meaning: Mapped[str | None] = mapped_column(Text)
    approved_at: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    withdrawn_by: Mapped[str | None]
    withdrawn_reason: Mapped[str | None] = mapped_column(Text)
    withdrawn_at: Mapped[datetime | None]
    continuation_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    approvals_body: Mapped[bytes | None]
    approvals_signature: Mapped[bytes | None]

    __table_args__ = (CheckConstraint("state IN ('CANDIDATE','APPROVED','PUBLISHED','WITHDRAWN')", name="state"),)


class ReleaseFile(Base):
    """One file of a release's folder."""

    __tablename__ = "release_files"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    blob_sha256: Mapped[str] = mapped_column(String(64))
    n_bytes: Mapped[int]


class ReleaseSignature(Base):
    """One person's re-authenticated statement about a release; ``statement`` is its exact bytes.

    Invariant: a person signs a release once, and each role signs it once.
    """

    __tablename__ = "release_signatures"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id"), primary_key=True)
    signer: Mapped[str]
    role: Mapped[str] = mapped_column(String(32))
    meaning: Mapped[str] = mapped_column(Text)
    statement: Mapped[bytes]
    at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("release_id", "role"),)


class ReleaseParent(Base):
    """A release whose run began from another release's adapter."""

    __tablename__ = "release_parents"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)
    parent_release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)

    __table_args__ = (Index("ix_release_parents_parent_release_id", "parent_release_id"),)


class ReleaseMark(Base):
    """Something that became of what a release was made from. The release stays; everybody who asks is told."""

    __tablename__ = "release_marks"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    cause: Mapped[str] = mapped_column(String(255), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime]


class DatasetWithdrawal(Base):
    """A site's signed word that it took a dataset out of use; several under one name are several."""

    __tablename__ = "dataset_withdrawals"

    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    statement_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset: Mapped[str] = mapped_column(String(128))
    dataset_sha256: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(32))
    withdrawn_at: Mapped[datetime]
    statement_body: Mapped[bytes]
    statement_signature: Mapped[bytes]
    reported_at: Mapped[datetime]


class SigningPassphrase(Base):
    """What a person of ours shows besides their token to sign: not the passphrase, but what it is checked with."""

    __tablename__ = "signing_passphrases"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id"), primary_key=True)
    salt: Mapped[bytes]
    verifier: Mapped[bytes]
    set_at: Mapped[datetime]
    n_failures: Mapped[int] = mapped_column(Integer, default=0)
    locked_until: Mapped[datetime | None]
