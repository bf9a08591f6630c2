"""One driver a run at a time. A lease that is not renewed runs out, and another process takes over.

Every transaction of a driver checks its lease first, so that one that was asleep past its time writes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.models import Lease
from fl_protocol.ids import RunId


def claim_lease(session: Session, run_id: RunId, *, holder: str, now: datetime, duration: timedelta) -> bool:
    """Take or renew the lease on a run; False while another holds it.

    A renewal is written only when half of the time is over, so that a quiet run costs no writes.
    """
    lease = session.get(Lease, _name(run_id))
    if lease is None:
        session.add(Lease(name=_name(run_id), holder=holder, expires_at=now + duration))
        return True
    if lease.holder != holder and lease.expires_at > now:
        return False
    if lease.holder != holder or lease.expires_at - now < duration / 2:
        lease.holder = holder
        lease.expires_at = now + duration
    return True


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
