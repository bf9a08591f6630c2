"""Release the adapter of a completed run: build the folder, have it approved, publish it, take it back."""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, write_checkpoint
from coordinator.db.models import Release, ReleaseFile
from coordinator.db.states import ReleaseState
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.refusals import RequestInvalidError, StateConflictError
from coordinator.services.release_folder import ReleaseKeys, build_release
from coordinator.services.release_lineage import read_lineage
from coordinator.services.resources import Resources
from coordinator.services.show_releases import ReleaseView, find_release, release_view
from fl_protocol.audit.events import AuditKind
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId

_SPOOL_BYTES = 64 << 20
_ZIP_CHUNK_BYTES = 1 << 20
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def release_id_for(run_id: RunId) -> str:
    """A run has one release, and its name follows from the run's."""
    return "rel-" + run_id.removeprefix("run-")


async def create_release(resources: Resources, run_id: RunId) -> None:
    """The driver's effect CreateRelease: build the CANDIDATE, once, however often it is asked for.

    Raises:
        NotFoundError, StateConflictError: there is no such run, or it is not COMPLETED.
        BlobError: the final state cannot be read or the folder cannot be stored.
    """
    await asyncio.to_thread(create_release_candidate, resources, run_id)


def create_release_candidate(resources: Resources, run_id: RunId) -> ReleaseView:
    """Build and store a run's release; one that is there already is returned.

    Raises:
        NotFoundError, StateConflictError, BlobError: see ``create_release``.
    """
    release_id = release_id_for(run_id)
    held = resources.db.read("find_release", lambda session: _held(session, release_id))
    if held is not None:
        return held
    checkpoint_audit(resources)
    now = resources.now()
    lineage = resources.db.read("read_lineage", lambda session: read_lineage(session, run_id))
    state = PublicState.from_bytes(resources.blobs.read(lineage.public_state_blob_sha256))
    keys = ReleaseKeys(
        release_signer=resources.release_signer, coordinator_spki=resources.signer.spki_der, origin=resources.origin
    )
    folder = build_release(lineage, state, release_id=release_id, keys=keys, now=now)
    # Blobs before the transaction that names them: a crash in between leaves bytes that nobody names.
    stored = {path: resources.blobs.put_bytes(content) for path, content in folder.files.items()}

    def write(session: Session) -> ReleaseView:
        held = _held(session, release_id)
        if held is not None:
            return held
        row = Release(
            release_id=release_id,
            run_id=run_id,
            state=ReleaseState.CANDIDATE.value,
            manifest=folder.manifest,
            manifest_sha256=folder.manifest_sha256,
            signature=folder.signature,
            created_at=now,
        )
        session.add(row)
        session.flush()
        session.add_all(
            ReleaseFile(release_id=release_id, path=path, blob_sha256=blob.sha256, n_bytes=blob.n_bytes)
            for path, blob in stored.items()
        )
        session.flush()
        append_audit(session, AuditKind.RELEASE_CREATED, actor="coordinator", facts=_facts(row), now=now)
        write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
        return release_view(session, row)

    return resources.db.run_tx("create_release", write)


def approve_release(resources: Resources, *, release_id: str, meaning: str, actor: str) -> ReleaseView:
    """Approve a candidate and publish it: one user's word, recorded with what it means and the manifest's digest.

    Raises:
        NotFoundError: there is no such release.
        RequestInvalidError: no meaning was said.
        StateConflictError: it is not a CANDIDATE.
    """
    if not meaning.strip():
        raise RequestInvalidError("say what the approval means")
    now = resources.now()

    def approve(session: Session) -> ReleaseView:
        row = find_release(session, release_id)
        _require_state(row, ReleaseState.CANDIDATE)
        row.approved_by, row.approved_meaning, row.approved_at = actor, meaning.strip(), now
        row.published_at = now
        row.state = ReleaseState.PUBLISHED.value
        session.flush()
        facts = {**_facts(row), "meaning": meaning.strip()[:500]}
        append_audit(session, AuditKind.RELEASE_APPROVED, actor=actor, facts=facts, now=now)
        append_audit(session, AuditKind.RELEASE_PUBLISHED, actor=actor, facts=_facts(row), now=now)
        write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
        return release_view(session, row)

    return resources.db.run_tx("approve_release", approve)


def withdraw_release(resources: Resources, *, release_id: str, reason: str, actor: str) -> ReleaseView:
    """Take a published release back: it is no longer given out, and the record stays.

    Raises:
        NotFoundError: there is no such release.
        RequestInvalidError: no reason was said.
        StateConflictError: it is not PUBLISHED.
    """
    if not reason.strip():
        raise RequestInvalidError("say the reason")
    now = resources.now()

    def withdraw(session: Session) -> ReleaseView:
        row = find_release(session, release_id)
        _require_state(row, ReleaseState.PUBLISHED)
        row.withdrawn_by, row.withdrawn_reason, row.withdrawn_at = actor, reason.strip(), now
        row.state = ReleaseState.WITHDRAWN.value
        session.flush()
        facts = {**_facts(row), "reason": reason.strip()[:500]}
        append_audit(session, AuditKind.RELEASE_WITHDRAWN, actor=actor, facts=facts, now=now)
        write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
        return release_view(session, row)

    return resources.db.run_tx("withdraw_release", withdraw)


def open_release_archive(resources: Resources, release_id: str) -> Iterator[bytes]:
    """The folder of a published release as a zip file, in pieces; the checks are made before the first piece.

    Raises:
        NotFoundError: there is no such release.
        StateConflictError: it is not PUBLISHED.
        BlobNotFoundError: a file of it is missing from the store.
    """

    def read(session: Session) -> list[tuple[str, str]]:
        row = find_release(session, release_id)
        _require_state(row, ReleaseState.PUBLISHED)
        query = select(ReleaseFile).where(ReleaseFile.release_id == release_id).order_by(ReleaseFile.path)
        return [(file.path, file.blob_sha256) for file in session.scalars(query)]

    files = resources.db.read("open_release_archive", read)
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 # closed by whoever reads it to the end
    try:
        # Stored, with one date: the same release gives the same bytes.
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:
            for path, sha256 in files:
                info = zipfile.ZipInfo(path, date_time=_ZIP_EPOCH)
                info.external_attr = 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as member:
                    for chunk in resources.blobs.iter_chunks(sha256):
                        member.write(chunk)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return _drain(spool)


def _drain(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        while chunk := spool.read(_ZIP_CHUNK_BYTES):
            yield chunk


def _held(session: Session, release_id: str) -> ReleaseView | None:
    row = session.get(Release, release_id)
    return None if row is None else release_view(session, row)


def _require_state(row: Release, state: ReleaseState) -> None:
    if row.state != state.value:
        raise StateConflictError(
            f"the release is {row.state}; this needs {state.value}", release_id=row.release_id, state=row.state
        )


def _facts(row: Release) -> dict[str, str | int | bool | None]:
    return {"release_id": row.release_id, "run_id": row.run_id, "manifest_sha256": row.manifest_sha256}
