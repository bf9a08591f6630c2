"""Whether this process does its work: the database answers, events can be recorded, and the driver turns, if any."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.faults import said_by
from coordinator.db.tx import Database
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.services.resources import Resources
from coordinator.services.round_access import COORDINATOR
from fl_protocol.audit.events import AuditKind

_log = structlog.get_logger("coordinator.services")


def check_health(resources: Resources) -> Mapping[str, bool]:
    """Each part by name, and whether it is well."""
    is_well = _is_database_well(resources)
    # No record, no action: a coordinator that cannot record does nothing, and is better replaced or mended than asked.
    checks = {"database": is_well, "audit": is_well and _is_audit_well(resources)}
    if resources.is_driver_alive is not None:
        checks["driver"] = resources.is_driver_alive()
    return checks


def _is_database_well(resources: Resources) -> bool:
    def ask(session: Session) -> bool:
        return bool(session.scalar(text("SELECT 1")) == 1)

    try:
        # A probe is asked again soon; its answer must not wait for the database to come back.
        return resources.db.read("check_health", ask, patience_s=0.0)
    except (DatabaseBusyError, DatabaseUnavailableError) as error:
        _log.warning("database_unreachable", error=error.facts.get("error"))
        return False


class _RecordedEnoughError(Exception):
    """Takes the probe's transaction back."""


_PROBED_FOR = timedelta(seconds=2)
_probes: WeakKeyDictionary[Database, tuple[datetime, bool]] = WeakKeyDictionary()
"""Anybody may ask for the health, and the probe takes the write lock: what it found is good for a moment."""


def _is_audit_well(resources: Resources) -> bool:
    now = resources.now()
    at, is_well = _probes.get(resources.db, (now - _PROBED_FOR, False))
    if now - at >= _PROBED_FOR or now < at:
        is_well = can_record(resources.db, now)
        _probes[resources.db] = (now, is_well)
    return is_well


def can_record(database: Database, now: datetime) -> bool:
    """Whether an event could be recorded now: one is appended, and taken back before it is committed."""

    def probe(session: Session) -> None:
        append_audit(session, AuditKind.PROCESS_STARTED, actor=COORDINATOR, facts={}, now=now)
        session.flush()
        raise _RecordedEnoughError

    try:
        database.run_tx("probe-audit", probe)
    except _RecordedEnoughError:
        return True
    except DatabaseBusyError:
        # Others record at this moment.
        return True
    except Exception as error:  # noqa: BLE001 # a probe says yes or no
        _log.error("audit_cannot_record", error=said_by(error))
        return False
    return False
