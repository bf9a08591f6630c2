"""Sign the head of the audit log, so that nobody, the coordinator included, can shorten or rewrite it unseen."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.db.audit import audit_head, write_checkpoint
from coordinator.db.models import AuditCheckpoint
from coordinator.services.resources import Resources


def checkpoint_audit(resources: Resources, *, min_new_events: int = 1) -> int | None:
    """Write a checkpoint when at least ``min_new_events`` events follow the last one.

    Returns:
        The size that was signed, or None when there was too little to sign.
    """
    now = resources.now()

    def n_new(session: Session) -> tuple[int, int]:
        size, _ = audit_head(session)
        signed = session.scalar(select(func.max(AuditCheckpoint.size))) or 0
        return size, size - signed

    # Read first: the usual answer is that there is nothing to do, and then no write lock is taken.
    _, pending = resources.db.read("count_unsigned_events", n_new)
    if pending < max(1, min_new_events):
        return None

    def write(session: Session) -> int | None:
        size, new = n_new(session)
        if new < max(1, min_new_events):
            return None
        write_checkpoint(session, signer=resources.signer, origin=resources.origin, now=now)
        return size

    return resources.db.run_tx("checkpoint_audit", write)
