"""How much of the coordinator's log this site has seen, and which restore it was told of. One small file.

A coordinator that was restored from a backup has lost what it recorded after it, and this site may have seen that. So
the site says with each question how long a log it knows; the coordinator answers with its signed statement of the
restore, which this site records in its own log. A log that does not continue what was seen, without such a statement,
is a fork; who asks for the proofs is ``supervision.log_witness``. The file is quick to read; where it is gone, the own
log remembers.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from fl_protocol.audit.chain import TreeHead
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.audit.restored import RestoredStatement, verify_restored
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundManifest
from site_agent.audit.store import AuditLog
from site_agent.audit.witnessed import read_witnessed
from site_agent.db.tx import SiteDb
from site_agent.durable_files import write_whole

log = structlog.get_logger(__name__)

_NO_HEAD = Sha256Hex("0" * 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLog:
    """The longest log of the coordinator that this site has seen in the present epoch, or in the one before.

    Attributes:
        size: how many rows it had; 0 before the first.
        head: its head.
        epoch: the latest restore that this site was told of.
        before: after a restore, the longest head from before it that the restored log must still contain.
    """

    size: int = 0
    head: Sha256Hex = _NO_HEAD
    epoch: int = 0
    before: TreeHead | None = None

    @property
    def anchors(self) -> tuple[TreeHead, ...]:
        """Every head that a log which is shown from now on must contain."""
        seen = (TreeHead(size=self.size, root=self.head),) if self.size else ()
        return seen if self.before is None else (self.before, *seen)


class CoordinatorLog:
    """Remembers it. Safe in many threads; blocks on the disk only when something new is learnt."""

    def __init__(self, path: Path, *, coordinator_spki: bytes, db: SiteDb, audit: AuditLog) -> None:
        """Read what an earlier process wrote; where there is no file that can be read, what the own log says.

        Raises:
            SiteDatabaseError: the own log cannot be read.
        """
        self._path = path
        self._spki = coordinator_spki
        self._db = db
        self._audit = audit
        self._lock = threading.Lock()
        self._seen = _read(path) or self._remembered()

    @property
    def seen(self) -> SeenLog:
        """What the coordinator is told."""
        return self._seen

    def record_shown(self, manifest: RoundManifest, signed: SignedBody) -> None:
        """An M0 showed a log that contains everything that was seen: record its head, and hold it if it is longer.

        Raises:
            SiteDatabaseError: it could not be recorded, so the round is not joined.
        """
        shown = TreeHead(size=manifest.audit_size, root=manifest.audit_head)
        with self._lock:
            seen = self._seen
            if shown == TreeHead(size=seen.size, root=seen.head) and seen.before is None:
                return
            facts = {**_shown_facts(manifest, signed), "epoch": seen.epoch, **_seen_facts(seen)}
            self._append(AuditKind.CHECKPOINT_WITNESSED, facts)
            longest = shown if shown.size > seen.size else TreeHead(size=seen.size, root=seen.head)
            self._keep(SeenLog(size=longest.size, head=longest.root, epoch=seen.epoch))

    def record_fork(self, manifest: RoundManifest, signed: SignedBody, *, finding: str) -> None:
        """An M0 showed a log that is not the one that was seen: record both, with the coordinator's signature.

        Raises:
            SiteDatabaseError: it could not be recorded.
        """
        seen = self._seen
        facts = {**_shown_facts(manifest, signed), "epoch": seen.epoch, **_seen_facts(seen), "finding": finding}
        self._append(AuditKind.HISTORY_FORKED, {**facts, "log": "coordinator"})

    def record_own_fork(self, *, held: TreeHead, own_size: int) -> None:
        """The coordinator holds a head under this site's name that is not in this site's log.

        Raises:
            SiteDatabaseError: it could not be recorded.
        """
        facts: dict[str, AuditFact] = {"held_size": held.size, "held_head": held.root, "own_size": own_size}
        self._append(AuditKind.HISTORY_FORKED, {**facts, "log": "own"})

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
            seen = self._seen
            if statement.epoch <= seen.epoch:
                return None
            facts: dict[str, AuditFact] = {
                "epoch": statement.epoch,
                "restored_size": statement.size,
                "restored_head": statement.head,
                "seen_size": seen.size,
                "seen_head": seen.head,
            }
            before = self._longest_before(statement)
            self._append(AuditKind.COORDINATOR_RESTORED, facts)
            # From here on the coordinator's log grows from the restored size: what was seen above it is history. What
            # was seen below it must still be there.
            self._keep(SeenLog(size=statement.size, head=statement.head, epoch=statement.epoch, before=before))
        log.warning("coordinator_was_restored", epoch=statement.epoch, restored_size=statement.size)
        return statement

    def _longest_before(self, statement: RestoredStatement) -> TreeHead | None:
        seen = self._seen
        if 0 < seen.size <= statement.size:
            return TreeHead(size=seen.size, root=seen.head)
        return self._db.run_read("read-witnessed", read_witnessed).up_to(statement.size) or seen.before

    def _remembered(self) -> SeenLog:
        witnessed = self._db.run_read("read-witnessed", read_witnessed)
        if not witnessed.heads:
            return SeenLog(epoch=witnessed.epoch)
        longest = witnessed.heads[-1]
        return SeenLog(size=longest.size, head=longest.root, epoch=witnessed.epoch)

    def _append(self, kind: AuditKind, facts: Mapping[str, AuditFact]) -> None:
        self._db.run_tx("record-coordinator-log", lambda session: self._audit.append(session, kind, "agent", **facts))

    def _keep(self, seen: SeenLog) -> None:
        self._seen = seen
        document: dict[str, object] = {"size": seen.size, "head": seen.head, "epoch": seen.epoch}
        if seen.before is not None:
            document["before"] = {"size": seen.before.size, "head": seen.before.root}
        try:
            write_whole(self._path, (json.dumps(document) + "\n").encode())
        except OSError as error:
            # This process knows; the next reads it out of the own log. A poll must not fail for it.
            self._path.unlink(missing_ok=True)
            log.warning("coordinator_log_not_written", cause=error.strerror)


def _shown_facts(manifest: RoundManifest, signed: SignedBody) -> dict[str, AuditFact]:
    """What was shown, and the signed M0: the site's log alone convicts a coordinator that shows two histories."""
    return {
        "run_id": manifest.run_id,
        "round_index": manifest.round_index,
        "round_attempt": manifest.round_attempt,
        "log_size": manifest.audit_size,
        "log_head": manifest.audit_head,
        "manifest": base64.b64encode(signed.encode()).decode("ascii"),
    }


def _seen_facts(seen: SeenLog) -> dict[str, AuditFact]:
    return {"seen_size": seen.size, "seen_head": seen.head}


def _read(path: Path) -> SeenLog | None:
    try:
        said = json.loads(path.read_bytes())
        before = said.get("before")
        return SeenLog(
            size=int(said["size"]),
            head=Sha256Hex(str(said["head"])),
            epoch=int(said["epoch"]),
            before=None if before is None else TreeHead(size=int(before["size"]), root=Sha256Hex(str(before["head"]))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
