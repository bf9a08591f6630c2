"""Releases as people see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Release, ReleaseFile, ReleaseSignature
from coordinator.errors import NotFoundError
from coordinator.services.pages import Page, PageRequest, page_from
from coordinator.services.release_marks import descendants_of, marks_of, parents_of
from coordinator.services.resources import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFileView:
    """A file of a release folder."""

    path: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSignatureView:
    """Who signed a release, in which role, and what that means."""

    user: str
    role: str
    meaning: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseMarkView:
    """What became of something that a release was made from."""

    kind: str
    cause: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseView:
    """A release, its manifest, where it came from, and what became of it and of that."""

    release_id: str
    run_id: str
    state: str
    manifest_sha256: str
    manifest: Mapping[str, object]
    files: tuple[ReleaseFileView, ...]
    created_at: datetime
    approved_by: str | None
    approved_meaning: str | None
    approved_at: datetime | None
    published_at: datetime | None
    withdrawn_by: str | None
    withdrawn_reason: str | None
    withdrawn_at: datetime | None
    signatures: tuple[ReleaseSignatureView, ...]
    marks: tuple[ReleaseMarkView, ...]
    parents: tuple[str, ...]
    descendants: tuple[str, ...]


def list_releases(resources: Resources, page: PageRequest, *, run_id: str | None = None) -> Page[ReleaseView]:
    """All releases, or those of one run."""

    def read(session: Session) -> list[tuple[str, ReleaseView]]:
        query = select(Release).order_by(Release.release_id).limit(page.limit + 1)
        if run_id is not None:
            query = query.where(Release.run_id == run_id)
        if page.after is not None:
            query = query.where(Release.release_id > page.after)
        return [(row.release_id, release_view(session, row)) for row in session.scalars(query)]

    return page_from(resources.db.read("list_releases", read), page)


def show_release(resources: Resources, release_id: str) -> ReleaseView:
    """One release.

    Raises:
        NotFoundError: there is no such release.
    """
    return resources.db.read("show_release", lambda session: release_view(session, find_release(session, release_id)))


def find_release(session: Session, release_id: str) -> Release:
    """The row of a release.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(Release, release_id)
    if row is None:
        raise NotFoundError("there is no such release", release_id=release_id[:80])
    return row


def release_view(session: Session, row: Release) -> ReleaseView:
    """What of a release is shown."""
    files = session.scalars(
        select(ReleaseFile).where(ReleaseFile.release_id == row.release_id).order_by(ReleaseFile.path)
    )
    return ReleaseView(
        release_id=row.release_id,
        run_id=row.run_id,
        state=row.state,
        manifest_sha256=row.manifest_sha256,
        manifest=json.loads(row.manifest),
        files=tuple(ReleaseFileView(path=file.path, sha256=file.blob_sha256, n_bytes=file.n_bytes) for file in files),
        created_at=row.created_at,
        approved_by=row.approved_by,
        approved_meaning=row.approved_meaning,
        approved_at=row.approved_at,
        published_at=row.published_at,
        withdrawn_by=row.withdrawn_by,
        withdrawn_reason=row.withdrawn_reason,
        withdrawn_at=row.withdrawn_at,
        signatures=tuple(
            ReleaseSignatureView(user=one.signer, role=one.role, meaning=one.meaning, at=one.at)
            for one in signatures_of(session, row.release_id)
        ),
        marks=tuple(
            ReleaseMarkView(kind=mark.kind, cause=mark.cause, reason=mark.reason, at=mark.at)
            for mark in marks_of(session, row.release_id)
        ),
        parents=parents_of(session, row.release_id),
        descendants=descendants_of(session, row.release_id),
    )


def signatures_of(session: Session, release_id: str) -> tuple[ReleaseSignature, ...]:
    """The signatures on a release, the oldest first."""
    query = select(ReleaseSignature).where(ReleaseSignature.release_id == release_id)
    return tuple(session.scalars(query.order_by(ReleaseSignature.at, ReleaseSignature.role)))
