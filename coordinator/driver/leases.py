"""One driver a run at a time. A lease that is not renewed runs out, and another process takes over.

Every transaction of a driver checks its lease first, so that one that was asleep past its time writes nothing. Times
are those of the processes' own clocks. Nothing that is written depends on their agreement: a transaction that claims,
renews or takes over conflicts with any that stepped the same run beside it, and an effect that two perform is completed
once, by its row in the outbox. What clocks that differ cost is work done twice; ``serve`` and ``doctor`` say so.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Lease
from fl_protocol.ids import RunId


def claim_lease(session: Session, run_id: RunId, *, holder: str, now: datetime, duration: timedelta) -> bool:
    """Take or renew the lease on a run; False while another holds it, or is at this moment taking it.

    A renewal is written only when half of the time is over, so that a quiet run costs no writes. Whoever writes locks
    the row and waits for nobody (``FOR UPDATE SKIP LOCKED``; SQLite has one writer at a time and needs no lock).
    """
    name = _name(run_id)
    seen = session.get(Lease, name)
    if seen is None:
        session.add(Lease(name=name, holder=holder, expires_at=now + duration))
        # Two who insert at once: the second is run again by ``run_tx``, and then finds the first one's row.
        session.flush()
        return True
    is_mine = seen.holder == holder
    if not is_mine and seen.expires_at > now:
        return False
    if is_mine and seen.expires_at - now >= duration / 2:
        return True
    query = select(Lease).where(Lease.name == name).with_for_update(skip_locked=True)
    locked = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if locked is None:
        return False
    locked.holder = holder
    locked.expires_at = now + duration
    return True


def has_lapsed(session: Session, run_id: RunId, *, holder: str, now: datetime, duration: timedelta) -> bool:
    """Whether nobody but this holder has driven the run for longer than it takes to take over from one that died.

    A lease that was given back counts too: that the next driver came at once, nobody wrote down.
    """
    lease = session.get(Lease, _name(run_id))
    return lease is None or (lease.holder != holder and now - lease.expires_at > duration)


def holds_lease(session: Session, run_id: RunId, *, holder: str, now: datetime) -> bool:
    """Whether the lease is this holder's and has not run out."""
    lease = session.get(Lease, _name(run_id))
    return lease is not None and lease.holder == holder and lease.expires_at > now


def release_lease(session: Session, run_id: RunId, *, holder: str) -> None:
    """Give the lease back, so that another need not wait for its end."""
    lease = session.get(Lease, _name(run_id))
    if lease is not None and lease.holder == holder:
        session.delete(lease)


def _name(run_id: RunId) -> str:
    return f"run:{run_id}"
