"""How many bytes each site was sent in a round: counted in memory, and written once a second for all.

For people who look at a run, and no evidence: what a process had not written yet when it was killed is not counted.
"""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import bindparam, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.db.models import Participation
from coordinator.db.tables import table_of
from coordinator.db.tx import Database
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext

_log = structlog.get_logger("coordinator.services")
_WRITE_AFTER_S = 1.0
_TABLE = table_of(Participation)
_NAMES = ("of_run", "of_round", "of_attempt", "of_site")
_COUNT = (
    update(_TABLE)
    .where(
        _TABLE.c.run_id == bindparam("of_run"),
        _TABLE.c.round_index == bindparam("of_round"),
        _TABLE.c.round_attempt == bindparam("of_attempt"),
        _TABLE.c.site_id == bindparam("of_site"),
    )
    .values(bytes_down=_TABLE.c.bytes_down + bindparam("n_bytes"))
)
_Key = tuple[str, int, int, str]


class TrafficMeter:
    """Counts what is sent. One instance a process, used in the event loop's thread."""

    def __init__(self, db: Database) -> None:
        """Take where the counts go."""
        self._db = db
        self._unwritten: dict[_Key, int] = {}
        self._writing: asyncio.Task[None] | None = None

    def add(self, site_id: SiteId, context: ExchangeContext, n_bytes: int) -> None:
        """Bytes that a site was sent in the round of this exchange; a site that was not in it is not counted."""
        key = (context.run_id, context.round_index, context.round_attempt, site_id)
        self._unwritten[key] = self._unwritten.get(key, 0) + n_bytes
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon(), name="traffic")

    async def flush(self) -> None:
        """Write what is counted now."""
        counted, self._unwritten = self._unwritten, {}
        if not counted:
            return

        def write(session: Session) -> None:
            counts = [{**dict(zip(_NAMES, key, strict=True)), "n_bytes": n} for key, n in counted.items()]
            session.execute(_COUNT, counts)

        try:
            await self._db.run_tx_async("count-bytes-down", write)
        except (WardroundError, SQLAlchemyError) as error:
            # A full disk comes as the driver's own error.
            code = error.code if isinstance(error, WardroundError) else type(error).__name__
            _log.warning("traffic_not_counted", code=code, cause=str(error))

    async def _write_soon(self) -> None:
        while self._unwritten:
            await asyncio.sleep(_WRITE_AFTER_S)
            await self.flush()
