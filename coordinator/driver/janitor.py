"""Keeps what must be kept and removes the rest, when its time has come. One janitor at work a database, by a lease.

Nothing depends on it being prompt, and a pass may die anywhere: each of its steps is a transaction, or a deletion that
may be repeated and that is written down afterwards.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy.orm import Session

from coordinator.db.models import Lease
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.rounds.instructions import RoundRef
from coordinator.services.collect_blobs import collect_orphans, delete_dead_partials, delete_scrubbed
from coordinator.services.context import EngineContext
from coordinator.services.scrub_round import Scrubbed, rounds_to_scrub, scrub_round
from fl_protocol.telemetry import coordinator_metrics as metrics

LEASE_NAME = "janitor"

_log = structlog.get_logger("coordinator.driver")


@dataclass(frozen=True, slots=True, kw_only=True)
class JanitorSettings:
    """How often it looks, and how long something that nobody names is left alone.

    Attributes:
        poll_s: between two passes.
        orphans_every: between two walks over the whole blob store.
        grace: before a blob that no row names, or what is left of an upload that never ended, is deleted.
        lease: how long another janitor waits for one that died.
    """

    poll_s: float = 60.0
    orphans_every: timedelta = timedelta(hours=1)
    grace: timedelta = timedelta(hours=24)
    lease: timedelta = timedelta(minutes=5)


class Janitor:
    """Any number may run at once: one holds the lease, the others look on."""

    def __init__(
        self, ctx: EngineContext, *, settings: JanitorSettings | None = None, holder: str | None = None
    ) -> None:
        self._ctx = ctx
        self._settings = settings or JanitorSettings()
        self._holder = holder or f"janitor-{secrets.token_hex(8)}"
        self._walked_at: datetime | None = None
        self._is_log_stale = False

    async def run(self) -> None:
        """Work until cancelled, then give the lease back."""
        try:
            while True:
                await self.sweep()
                await asyncio.sleep(self._settings.poll_s)
        finally:
            try:
                await self._ctx.db.run_tx_async("release-janitor", self._release)
            except (DatabaseUnavailableError, DatabaseBusyError) as error:
                # It runs out by itself.
                _log.warning("leases_not_given_back", code=error.code, leases=1)

    async def sweep(self) -> bool:
        """One pass; whether this janitor held the lease. A step that fails is logged, and tried again by the next."""
        try:
            return await asyncio.to_thread(self._sweep)
        except Exception:  # noqa: BLE001 # the driver's boundary: logged, and tried again at the next pass
            _log.exception("janitor_failed")
            return False

    def _sweep(self) -> bool:
        if not self._ctx.db.run_tx("claim-janitor", self._claim):
            return False
        self._ctx.meter.count(metrics.SCRUB_PASSES)
        self._attempt("scrub", self._scrub)
        self._attempt("delete-scrubbed", lambda: self._drain(lambda: delete_scrubbed(self._ctx)))
        self._attempt(
            "delete-partials", lambda: self._drain(lambda: delete_dead_partials(self._ctx, grace=self._settings.grace))
        )
        if self._is_log_stale:
            # Readers may be in the way for a moment; what was scrubbed stands in the log until then.
            self._is_log_stale = not self._ctx.db.drop_log()
        now = self._ctx.now()
        if self._walked_at is None or now - self._walked_at >= self._settings.orphans_every:
            self._walked_at = now
            self._attempt("collect", self._collect)
        return True

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        """One step's failure is not another's."""
        try:
            work()
        except Exception:  # noqa: BLE001 # the driver's boundary: logged, and tried again at the next pass
            _log.exception("janitor_step_failed", step=name)

    def _scrub(self) -> None:
        ctx, now = self._ctx, self._ctx.now()
        due = ctx.db.read("rounds-to-scrub", lambda session: rounds_to_scrub(session, ctx.roles, now=now))
        ctx.meter.put(metrics.SCRUB_BACKLOG, len(due))
        for n_left, ref in zip(range(len(due) - 1, -1, -1), due, strict=True):
            done = ctx.db.run_tx("scrub-round", partial(self._scrub_held, ref=ref, now=now))
            if done is None:
                continue
            self._is_log_stale = True
            ctx.meter.put(metrics.SCRUB_BACKLOG, n_left)
            for context in done.exchanges:
                ctx.roles.forget(context)
            _log.info(
                "round_scrubbed",
                run_id=ref.run_id,
                round_index=ref.round_index,
                round_attempt=ref.round_attempt,
                n_uploads=done.n_uploads,
                n_messages=done.n_messages,
            )

    def _scrub_held(self, session: Session, *, ref: RoundRef, now: datetime) -> Scrubbed | None:
        return scrub_round(session, ref, self._ctx.roles, now=now) if self._claim(session) else None

    def _drain(self, step: Callable[[], int]) -> None:
        while step():
            if not self._ctx.db.run_tx("claim-janitor", self._claim):
                return

    def _collect(self) -> None:
        self._drain(lambda: collect_orphans(self._ctx, grace=self._settings.grace))
        self._ctx.blobs.discard_unfinished(older_than_s=self._settings.grace.total_seconds())

    def _claim(self, session: Session) -> bool:
        """Take or renew the lease; False while another holds it."""
        now, lease = self._ctx.now(), session.get(Lease, LEASE_NAME)
        if lease is None:
            session.add(Lease(name=LEASE_NAME, holder=self._holder, expires_at=now + self._settings.lease))
            # Two who insert at once: the second is run again, and then finds the first one's row.
            session.flush()
            return True
        if lease.holder != self._holder and lease.expires_at > now:
            return False
        if lease.holder != self._holder or lease.expires_at - now < self._settings.lease / 2:
            lease.holder, lease.expires_at = self._holder, now + self._settings.lease
        return True

    def _release(self, session: Session) -> None:
        lease = session.get(Lease, LEASE_NAME)
        if lease is not None and lease.holder == self._holder:
            session.delete(lease)
