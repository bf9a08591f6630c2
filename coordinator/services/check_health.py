"""Whether this process does its work: the database answers, and the driver turns where there is one."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.services.resources import Resources

_log = structlog.get_logger("coordinator.services")


def check_health(resources: Resources) -> Mapping[str, bool]:
    """Each part by name, and whether it is well."""
    checks = {"database": _is_database_well(resources)}
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
