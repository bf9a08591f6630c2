"""What is read when somebody looks: a few rows by their indexes, the disk, the certificates. Never a whole table.

Cheap whatever the age of the database: counts go by an index over states, sites are few, and of the audit log one row
is read. An answer is good for a second, so that many who look at once are one look.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy import QueuePool, Select, func, select
from sqlalchemy.orm import Session

from coordinator.blobs.store import BlobStore
from coordinator.db.audit import audit_head
from coordinator.db.models import OutboxEntry, Round, Run, Site
from coordinator.db.states import SiteState
from coordinator.db.tx import Database
from coordinator.errors import CoordinatorError
from coordinator.rounds.round_machine import RoundState
from coordinator.services.upload_desk import UploadDesk
from fl_protocol.clock import Clock
from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.meter import Reading
from fl_protocol.telemetry.metric import Metric

_log = structlog.get_logger("coordinator.metrics")

_GOOD_FOR_S = 1.0
_MOST_SITES = 2000
"""Series of sites that are exposed; a federation of more would need another way to be watched."""
_OPEN_ROUNDS = tuple(state.value for state in RoundState if not state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """Where the readings come from.

    Attributes:
        db: rows.
        blobs: how much fits.
        directory: the coordinator's folder.
        clock: the present instant.
        uploads: the streams of this process.
        certificates: when each of this coordinator's ends.
        last_turn_at: when this process's driver turned last; None where it has not or is none.
        version: of the program.
        roles: of this process, joined by commas.
    """

    db: Database
    blobs: BlobStore
    directory: Path
    clock: Clock
    uploads: UploadDesk
    certificates: Callable[[], Mapping[str, datetime]]
    last_turn_at: Callable[[], datetime | None]
    version: str
    roles: str


class ScrapeDesk:
    """Answers scrapes. Called from many threads."""

    def __init__(self, scraped: Scraped) -> None:
        """Take the sources."""
        self._scraped = scraped
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._readings: tuple[Reading, ...] = ()

    def read(self) -> Iterable[Reading]:
        """Every reading. What cannot be read is left out, and ``database_up`` or the log says so."""
        with self._lock:
            began = time.monotonic()
            if began - self._at >= _GOOD_FOR_S:
                readings = list(self._collect())
                readings.append(Reading(metric=metrics.SCRAPE_READ, value=time.monotonic() - began))
                self._readings, self._at = tuple(readings), time.monotonic()
            return self._readings

    def _collect(self) -> Iterator[Reading]:
        scraped = self._scraped
        now = scraped.clock.now()
        yield Reading(metric=metrics.BUILD, value=1.0, labels=(scraped.version, scraped.roles))
        yield Reading(metric=metrics.UPLOADS_IN_FLIGHT, value=scraped.uploads.n_streams)
        yield Reading(metric=metrics.DISK_FREE, value=shutil.disk_usage(scraped.directory).free)
        for name, ends in scraped.certificates().items():
            left = (ends - now).total_seconds()
            yield Reading(metric=metrics.CERTIFICATE_LEFT, value=left, labels=(name,))
        if (turned := scraped.last_turn_at()) is not None:
            yield Reading(metric=metrics.DRIVER_TURN_AGE, value=max(0.0, (now - turned).total_seconds()))
        yield from self._of_the_pool()
        yield from self._tried("blobs", self._of_the_blobs)
        rows = list(self._tried("database", lambda: self._of_the_rows(now)))
        yield Reading(metric=metrics.DATABASE_UP, value=float(bool(rows)))
        yield from rows

    def _tried(self, what: str, read: Callable[[], list[Reading]]) -> list[Reading]:
        try:
            return read()
        except CoordinatorError as error:
            _log.warning("metrics_not_read", what=what, code=error.code)
            return []

    def _of_the_pool(self) -> Iterator[Reading]:
        pool = self._scraped.db.engine.pool
        if isinstance(pool, QueuePool):
            most = pool.size() + max(0, pool._max_overflow)  # noqa: SLF001 # the library tells it nowhere else
            yield Reading(metric=metrics.DB_CONNECTIONS, value=pool.checkedout())
            yield Reading(metric=metrics.DB_CONNECTIONS_LIMIT, value=most)

    def _of_the_blobs(self) -> list[Reading]:
        free = self._scraped.blobs.free_bytes()
        return [] if free is None else [Reading(metric=metrics.BLOB_FREE, value=free)]

    def _of_the_rows(self, now: datetime) -> list[Reading]:
        # A look must not wait for a database that is away.
        return self._scraped.db.read("metrics", lambda session: list(_rows(session, now)), patience_s=0.0)


def _rows(session: Session, now: datetime) -> Iterator[Reading]:
    yield from _by_state(session, metrics.RUNS, select(Run.state, func.count()).group_by(Run.state))
    of_rounds = select(Round.state, func.count()).where(Round.state.in_(_OPEN_ROUNDS)).group_by(Round.state)
    yield from _by_state(session, metrics.ROUNDS_OPEN, of_rounds)
    yield from _by_state(session, metrics.SITES, select(Site.state, func.count()).group_by(Site.state))
    seen = select(Site.site_id, Site.last_seen_at).where(
        Site.state == SiteState.ENROLLED.value, Site.last_seen_at.is_not(None)
    )
    for site_id, at in session.execute(seen.limit(_MOST_SITES)):
        assert at is not None, "the query asks for it"
        age = max(0.0, (now - at).total_seconds())
        yield Reading(metric=metrics.SITE_LAST_SEEN, value=age, labels=(site_id,))
    # A question a run, so that the index over (run_id, done_at) answers it: what is done stays in the table for ever.
    of_run = (OutboxEntry.run_id == Run.run_id, OutboxEntry.done_at.is_(None))
    n_of_run = select(func.count()).select_from(OutboxEntry).where(*of_run).correlate(Run).scalar_subquery()
    oldest_of_run = select(func.min(OutboxEntry.created_at)).where(*of_run).correlate(Run).scalar_subquery()
    by_run = session.execute(select(n_of_run, oldest_of_run).select_from(Run))
    waiting = [(row[0], row[1]) for row in by_run if row[0]]
    n_effects, oldest = sum(n for n, _ in waiting), min((at for _, at in waiting), default=None)
    yield Reading(metric=metrics.OUTBOX, value=n_effects)
    age = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
    yield Reading(metric=metrics.OUTBOX_AGE, value=age)
    yield Reading(metric=metrics.AUDIT_ROWS, value=audit_head(session)[0])


def _by_state(session: Session, metric: Metric, query: Select[str, int]) -> Iterator[Reading]:
    """One reading a state, 0 where there is none."""
    found = {row[0]: row[1] for row in session.execute(query)}
    for state in metric.labels[0].values:
        yield Reading(metric=metric, value=found.get(state, 0), labels=(state,))
