"""Release the adapter of a completed run: build the candidate's folder, give it out, take it back.

What makes a candidate a release stands in ``sign_release``.
"""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, write_checkpoint
from coordinator.db.models import Release, ReleaseFile, ReleaseParent
from coordinator.db.states import ReleaseState
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.refusals import RequestInvalidError, StateConflictError
from coordinator.services.release_folder import RELEASE_APPROVALS, ReleaseKeys, approvals_file, build_release
from coordinator.services.release_lineage import read_lineage
from coordinator.services.release_marks import mark_descendants, mark_new_release
from coordinator.services.resources import Resources
from coordinator.services.show_releases import ReleaseView, find_release, release_view
from fl_protocol.audit.events import AuditKind
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId
from fl_protocol.signing.signed import SignedBody

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
            continuation_sha256=folder.continuation_sha256,
        )
        session.add(row)
        session.flush()
        parents = [parent.release_id for parent in lineage.parents]
        session.add_all(ReleaseParent(release_id=release_id, parent_release_id=parent) for parent in parents)
        session.add_all(
            ReleaseFile(release_id=release_id, path=path, blob_sha256=blob.sha256, n_bytes=blob.n_bytes)
            for path, blob in stored.items()
        )
        session.flush()
        append_audit(session, AuditKind.RELEASE_CREATED, actor="coordinator", facts=_facts(row), now=now)
        mark_new_release(session, row, parents, now=now)
        write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
        return release_view(session, row)

    return resources.db.run_tx("create_release", write)


def withdraw_release(resources: Resources, *, release_id: str, reason: str, actor: str) -> ReleaseView:
    """Take a published release back: it is given out no more, its record stays, and what was made from it is marked.

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
        mark_descendants(session, row, reason=reason.strip(), now=now)
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
    return _archive(resources, release_id, states=frozenset({ReleaseState.PUBLISHED}))


def open_candidate_archive(resources: Resources, release_id: str) -> Iterator[bytes]:
    """The same of what is not published yet, for those who sign it: without the persons' signatures.

    Raises:
        NotFoundError: there is no such release.
        StateConflictError: it is neither CANDIDATE nor APPROVED.
        BlobNotFoundError: a file of it is missing from the store.
    """
    return _archive(resources, release_id, states=frozenset({ReleaseState.CANDIDATE, ReleaseState.APPROVED}))


def _archive(resources: Resources, release_id: str, *, states: frozenset[ReleaseState]) -> Iterator[bytes]:
    def read(session: Session) -> tuple[list[tuple[str, str]], bytes | None]:
        row = find_release(session, release_id)
        _require_state(row, *states)
        query = select(ReleaseFile).where(ReleaseFile.release_id == release_id).order_by(ReleaseFile.path)
        approvals = None
        if row.approvals_body is not None and row.approvals_signature is not None:
            signed = SignedBody(body=row.approvals_body, signature=row.approvals_signature)
            approvals = approvals_file(signed, release_spki=resources.release_signer.spki_der)
        return [(file.path, file.blob_sha256) for file in session.scalars(query)], approvals

    files, approvals = resources.db.read("open_release_archive", read)
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 # closed by whoever reads it to the end
    try:
        # Stored, with one date: the same release gives the same bytes.
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:
            for path, sha256 in files:
                with archive.open(_zip_info(path), "w", force_zip64=True) as member:
                    for chunk in resources.blobs.iter_chunks(sha256):
                        member.write(chunk)
            if approvals is not None:
                archive.writestr(_zip_info(RELEASE_APPROVALS), approvals)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return _drain(spool)


def _zip_info(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, date_time=_ZIP_EPOCH)
    info.external_attr = 0o644 << 16
    return info


def _drain(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        while chunk := spool.read(_ZIP_CHUNK_BYTES):
            yield chunk


def _held(session: Session, release_id: str) -> ReleaseView | None:
    row = session.get(Release, release_id)
    return None if row is None else release_view(session, row)


def _require_state(row: Release, *states: ReleaseState) -> None:
    if row.state not in {state.value for state in states}:
        needed = " or ".join(sorted(states))
        raise StateConflictError(
            f"the release is {row.state}; this needs {needed}", release_id=row.release_id, state=row.state
        )


def _facts(row: Release) -> dict[str, str | int | bool | None]:
    return {"release_id": row.release_id, "run_id": row.run_id, "manifest_sha256": row.manifest_sha256}
