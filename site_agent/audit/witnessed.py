"""What this site's own log says about the coordinator's: which heads it was shown, and which restores it was told of.

The own log is signed and cannot lose a row unnoticed; so it is the memory that counts when the small file that usually
answers (``state.coordinator_log``) is gone, and when a restore has to be held against what was seen before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, literal, or_, select
from sqlalchemy.orm import Session

from fl_protocol.audit.chain import TreeHead
from fl_protocol.audit.events import AuditEvent, AuditEventInvalidError, AuditKind, event_from_bytes
from fl_protocol.ids import Sha256Hex
from site_agent.db.models import AuditEventRow
from site_agent.db.tables import table_of

_EVENTS = table_of(AuditEventRow)
_KINDS = (AuditKind.CHECKPOINT_WITNESSED, AuditKind.COORDINATOR_RESTORED)
_RELEVANT = (
    select(_EVENTS.c.body)
    .where(or_(*(func.instr(_EVENTS.c.body, literal(f'"kind":"{kind.value}"'.encode())) > 0 for kind in _KINDS)))
    .order_by(_EVENTS.c.seq)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessed:
    """Heads of the coordinator's log that must all be in it today, the smallest first; and the epoch they stand in."""

    heads: tuple[TreeHead, ...] = ()
    epoch: int = 0

    def up_to(self, size: int) -> TreeHead | None:
        """The longest of them that is no longer than ``size``."""
        return max((head for head in self.heads if head.size <= size), key=lambda head: head.size, default=None)


def read_witnessed(session: Session) -> Witnessed:
    """Walk the own log: every head that was shown and proven, but for those that a later restore took back."""
    heads: dict[int, TreeHead] = {}
    epoch = 0
    for event in _relevant(session):
        facts = event.facts
        if event.kind is AuditKind.CHECKPOINT_WITNESSED:
            head = _head(facts.get("log_size"), facts.get("log_head"))
        else:
            head = _head(facts.get("restored_size"), facts.get("restored_head"))
            kept = 0 if head is None else head.size
            heads = {size: known for size, known in heads.items() if size <= kept}
            epoch = int(facts.get("epoch") or 0)
        if head is not None:
            heads[head.size] = head
    return Witnessed(heads=tuple(heads[size] for size in sorted(heads)), epoch=epoch)


def _relevant(session: Session) -> Iterator[AuditEvent]:
    for (body,) in session.execute(_RELEVANT):
        try:
            event = event_from_bytes(bytes(body)).event
        except (AuditEventInvalidError, TypeError, ValueError):
            # A row that was altered: 'audit verify' names it. It is no memory.
            continue
        if event.kind in _KINDS:
            yield event


def _head(size: object, root: object) -> TreeHead | None:
    if not isinstance(size, int) or not isinstance(root, str) or len(root) != 64:
        return None
    return TreeHead(size=size, root=Sha256Hex(root))
