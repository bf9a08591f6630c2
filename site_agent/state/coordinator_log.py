"""How much of the coordinator's log this site has seen, and which restore it was told of. One small file.

A coordinator that was restored from a backup has lost what it recorded after it, and this site may have seen that. So
the site says with each question how long a log it knows; the coordinator answers with its signed statement of the
restore, which this site records in its own log. A shorter log without such a statement would be a fork.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from fl_protocol.audit.events import AuditKind
from fl_protocol.audit.restored import RestoredStatement, verify_restored
from fl_protocol.errors import ProtocolError
from fl_protocol.secagg.messages import StatementKind
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from site_agent.audit.store import AuditLog
from site_agent.db.tx import SiteDb
from site_agent.durable_files import write_whole

log = structlog.get_logger(__name__)

_NO_HEAD = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLog:
    """The longest log of the coordinator that this site has seen in the present epoch, or in the one before."""

    size: int = 0
    head: str = _NO_HEAD
    epoch: int = 0


class CoordinatorLog:
    """Remembers it. Safe in many threads; blocks on the disk only when something new is learnt."""

    def __init__(self, path: Path, *, coordinator_spki: bytes, db: SiteDb, audit: AuditLog) -> None:
        """Read what an earlier process wrote; a file that cannot be read is as none, and is written anew."""
        self._path = path
        self._spki = coordinator_spki
        self._db = db
        self._audit = audit
        self._lock = threading.Lock()
        self._seen = _read(path)

    @property
    def seen(self) -> SeenLog:
        """What the coordinator is told."""
        return self._seen

    def note_manifest(self, signed: SignedBody) -> None:
        """Learn the head that an M0 names, if the pinned coordinator signed it; others judge the M0 itself."""
        try:
            manifest = RoundManifest.decode(verify_body(self._spki, StatementKind.M0.value, signed))
        except ProtocolError:
            return
        with self._lock:
            if manifest.audit_size > self._seen.size:
                self._keep(replace(self._seen, size=manifest.audit_size, head=manifest.audit_head))

    def note_restored(self, signed: SignedBody) -> RestoredStatement | None:
        """Learn of a restore; what is new is recorded in this site's log first.

        Returns:
            The statement, where it is new; None where it is known already or not the coordinator's.

        Raises:
            SiteDatabaseError: it could not be recorded; it will be told again.
        """
        try:
            statement = verify_restored(self._spki, signed)
        except ProtocolError as error:
            log.warning("restored_statement_invalid", code=error.code)
            return None
        with self._lock:
            if statement.epoch <= self._seen.epoch:
                return None
            self._record(statement)
            # From here on the coordinator's log grows from the restored size: what was seen above it is history.
            self._keep(SeenLog(size=statement.size, head=statement.head, epoch=statement.epoch))
        log.warning("coordinator_was_restored", epoch=statement.epoch, restored_size=statement.size)
        return statement

    def _record(self, statement: RestoredStatement) -> None:
        seen = self._seen
        self._db.run_tx(
            "record-restored",
            lambda session: self._audit.append(
                session,
                AuditKind.COORDINATOR_RESTORED,
                "agent",
                epoch=statement.epoch,
                restored_size=statement.size,
                restored_head=statement.head,
                seen_size=seen.size,
                seen_head=seen.head,
            ),
        )

    def _keep(self, seen: SeenLog) -> None:
        self._seen = seen
        document = {"size": seen.size, "head": seen.head, "epoch": seen.epoch}
        try:
            write_whole(self._path, (json.dumps(document) + "\n").encode())
        except OSError as error:
            # This process knows; the next learns it again. A poll must not fail for it.
            log.warning("coordinator_log_not_written", cause=error.strerror)


def _read(path: Path) -> SeenLog:
    try:
        said = json.loads(path.read_bytes())
        return SeenLog(size=int(said["size"]), head=str(said["head"]), epoch=int(said["epoch"]))
    except (OSError, ValueError, KeyError, TypeError):
        return SeenLog()
