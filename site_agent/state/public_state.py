"""The public state of each run as this site computed it: a file with the bytes, a row with the digest.

Invariant: a row is written after its file; what a row names is read back only
if the bytes still have its digest. States are computed from published sums, never taken from anybody.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.clock import Clock
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId
from fl_protocol.tensors.safetensors_io import iter_safetensors
from site_agent.db.instants import instant_text
from site_agent.db.models import PublicStateRow
from site_agent.db.tx import SiteDb
from site_agent.errors import PublicStateError
from site_agent.state.private_files import make_private_folder, write_private_file

_KEPT_VERSIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A public state that this site has. ``result_sha256`` is that of the M10 that led to it; None for version 0."""

    run_id: RunId
    version: int
    sha256: str
    result_sha256: str | None
    path: Path


def adapter_digest(state: PublicState) -> str:
    """The name of a state's adapter alone.

    Two states of different versions, or of different runs, may hold the same adapter, and evaluate the same.
    """
    digest = hashlib.sha256()
    for piece in iter_safetensors(state.adapter):
        digest.update(piece)
    return digest.hexdigest()


def read_verified(stored: StoredState) -> bytes:
    """The bytes of a state's file.

    Raises:
        PublicStateError: the file is missing, or its bytes have another digest.
    """
    try:
        data = stored.path.read_bytes()
    except OSError as error:
        raise _damaged("the file of a public state is missing", stored) from error
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise _damaged("the file of a public state was altered", stored)
    return data


class PublicStateStore:
    """The states of all runs. All methods block on the disk: call them in a thread.

    The state that was loaded or saved last stays in memory, since a round asks for it several times.
    """

    def __init__(self, root: Path, db: SiteDb, clock: Clock) -> None:
        """Keep the files under ``root``, one folder a run."""
        self._root = root
        self._db = db
        self._clock = clock
        self._held: tuple[str, PublicState] | None = None

    def newest(self, run_id: RunId) -> StoredState | None:
        """The state with the highest version; None before the first."""

        def read(session: Session) -> StoredState | None:
            newest_first = PublicStateRow.version.desc()
            query = select(PublicStateRow).where(PublicStateRow.run_id == run_id).order_by(newest_first).limit(1)
            row = session.scalars(query).one_or_none()
            return None if row is None else _stored(row)

        return self._db.run_read("newest-public-state", read)

    def find(self, run_id: RunId, version: int) -> StoredState | None:
        """The state of that version; None where this site never had it."""

        def read(session: Session) -> StoredState | None:
            row = session.get(PublicStateRow, (run_id, version))
            return None if row is None else _stored(row)

        return self._db.run_read("find-public-state", read)

    def load(self, stored: StoredState) -> PublicState:
        """The state itself.

        Raises:
            PublicStateError: the file is missing, or its bytes have another digest.
        """
        held = self._held
        if held is not None and held[0] == stored.sha256:
            return held[1]
        state = PublicState.from_bytes(read_verified(stored), is_shared=True)
        self._held = (stored.sha256, state)
        return state

    def save(self, run_id: RunId, state: PublicState, *, result_sha256: str | None) -> StoredState:
        """Keep a state; saving the same one again does nothing.

        Raises:
            PublicStateError: this site has another state of that version.
        """
        folder = self._root / run_id
        stored = StoredState(
            run_id=run_id,
            version=state.version,
            sha256=state.digest(),
            result_sha256=result_sha256,
            path=folder / f"v{state.version}.safetensors",
        )
        known = self.find(run_id, state.version)
        if known is not None:
            if known.sha256 != stored.sha256:
                raise _damaged("this site computed another public state of this version before", stored)
            return known
        make_private_folder(folder)
        write_private_file(stored.path, state.iter_bytes())
        self._held = (stored.sha256, state)

        def write(session: Session) -> None:
            session.add(
                PublicStateRow(
                    run_id=run_id,
                    version=stored.version,
                    sha256=stored.sha256,
                    path=str(stored.path),
                    result_sha256=result_sha256,
                    created_at=instant_text(self._clock.now()),
                )
            )

        self._db.run_tx("save-public-state", write)
        # The rows of older versions stay, for the chain; their bytes can be computed again from published sums.
        (folder / f"v{stored.version - _KEPT_VERSIONS}.safetensors").unlink(missing_ok=True)
        return stored


def _stored(row: PublicStateRow) -> StoredState:
    return StoredState(
        run_id=RunId(row.run_id),
        version=row.version,
        sha256=row.sha256,
        result_sha256=row.result_sha256,
        path=Path(row.path),
    )


def _damaged(message: str, stored: StoredState) -> PublicStateError:
    return PublicStateError(message, run_id=stored.run_id, version=stored.version)
