"""The tree over this site's own log: what it proves to others about it, and whether what they hold of it is in it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fl_protocol.audit.chain import TreeHead
from fl_protocol.audit.subtrees import LogSubtrees, ReadLeaves
from site_agent.audit.store import audit_head
from site_agent.db.models import AuditEventRow
from site_agent.db.tables import table_of
from site_agent.db.tx import SiteDb

_EVENTS = table_of(AuditEventRow)
_LEAVES = (
    select(_EVENTS.c.leaf_sha256)
    .where(_EVENTS.c.seq >= bindparam("start"), _EVENTS.c.seq < bindparam("stop"))
    .order_by(_EVENTS.c.seq)
)


class OwnTree:
    """Subtree heads of the own log, in memory. Safe in many threads; blocks on the disk."""

    def __init__(self, db: SiteDb) -> None:
        """Know nothing yet: the first question reads the log once."""
        self._db = db
        self._subtrees = LogSubtrees()
        self._lock = threading.Lock()

    def size(self) -> int:
        """How many rows the own log has. Raises SiteDatabaseError."""
        return self._db.run_read("own-size", lambda session: audit_head(session).size)

    def holds(self, head: TreeHead) -> bool:
        """Whether the own log had this head at that size. Raises SiteDatabaseError, LeavesMissingError."""

        def look(session: Session) -> bool:
            if head.size > audit_head(session).size:
                return False
            with self._lock:
                return self._subtrees.head(head.size, _reader(session)) == head

        return self._db.run_read("own-head", look)

    def prove(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """PROOF(old_size, D[new_size]) of RFC 6962 over the own log.

        Raises:
            SiteDatabaseError, LeavesMissingError: the log cannot be read, or is shorter.
        """

        def look(session: Session) -> tuple[bytes, ...]:
            with self._lock:
                return self._subtrees.prove_consistency(old_size, new_size, _reader(session))

        return self._db.run_read("own-proof", look)


def _reader(session: Session) -> ReadLeaves:
    def read(start: int, stop: int) -> Sequence[bytes]:
        rows = session.execute(_LEAVES, {"start": start, "stop": stop})
        return [bytes.fromhex(str(leaf)) for (leaf,) in rows]

    return read
