"""What is read when somebody looks at a site: its status, one row, the disk and the journal's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from fl_protocol.clock import Clock
from fl_protocol.telemetry import site_metrics as metrics
from fl_protocol.telemetry.meter import Reading
from site_agent.audit.store import audit_head
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.instants import instant_from_text
from site_agent.db.tx import SiteDb
from site_agent.folder import SiteFolder
from site_agent.session.machine import TERMINAL, SessionPhase
from site_agent.state.journal import SPOOL_FILE
from site_agent.supervision.status_board import StatusBoard

_AT_WORK = frozenset(phase.value for phase in SessionPhase if phase not in TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScrape:
    """Where the readings come from. Called from many threads; it changes nothing."""

    board: StatusBoard
    db: SiteDb
    folder: SiteFolder
    clock: Clock
    version: str

    def read(self) -> Iterable[Reading]:
        """Every reading; what cannot be read is left out."""
        return list(self._collect())

    def _collect(self) -> Iterator[Reading]:
        status, now = self.board.status, self.clock.now()
        yield Reading(metric=metrics.BUILD, value=1.0, labels=(self.version,))
        yield Reading(metric=metrics.CONNECTED, value=float(status.connected))
        yield Reading(metric=metrics.RECORDING, value=float(status.cannot_record is None))
        yield Reading(metric=metrics.IN_ROUND, value=float(status.state in _AT_WORK))
        if status.certificate_until is not None:
            left = (instant_from_text(status.certificate_until) - now).total_seconds()
            yield Reading(metric=metrics.CERTIFICATE_LEFT, value=left)
        yield Reading(metric=metrics.DISK_FREE, value=shutil.disk_usage(self.folder.root).free)
        yield from self._spool(now)
        try:
            size = self.db.run_read("metrics", audit_head).size
        except SiteDatabaseError:
            # ``recording`` tells it.
            return
        yield Reading(metric=metrics.AUDIT_ROWS, value=size)

    def _spool(self, now: datetime) -> Iterator[Reading]:
        """The masked uploads of rounds that are open: a folder an exchange, a handful at most."""
        made_at: list[float] = []
        for path in self.folder.journal_dir.glob(f"run-*/*/{SPOOL_FILE}"):
            try:
                made_at.append(path.stat().st_mtime)
            except FileNotFoundError:
                # Its round ended at this moment.
                continue
        oldest = max(0.0, now.timestamp() - min(made_at)) if made_at else 0.0
        yield Reading(metric=metrics.SPOOLED, value=len(made_at))
        yield Reading(metric=metrics.SPOOL_AGE, value=oldest)
