"""The loop: for each run whose lease it holds, step the machines until nothing changes, then perform their effects.

A driver keeps nothing between turns but its name: another one, in this process or the next, goes on from the database
at any point. It wakes when a service rings, and looks by itself twice a second.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from coordinator.db.runs import runs_to_drive
from coordinator.driver.effects_performer import CreateRelease, DueEffect, EffectsPerformer, RetryRules
from coordinator.driver.leases import claim_lease, has_lapsed, holds_lease, release_lease
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.services.advance_run import advance_run
from coordinator.services.context import EngineContext
from coordinator.services.turn import TurnOutcome
from fl_protocol.ids import RunId
from fl_protocol.telemetry import coordinator_metrics as metrics

_log = structlog.get_logger("coordinator.driver")
_IDLE_SHARE = 20.0
"""Looks that nobody asked for take at most a twentieth of the time, but for the longest pause."""
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSettings:
    """How often it looks, how long its leases last, how it retries."""

    poll_s: float = 0.5
    lease: timedelta = timedelta(seconds=5)
    retries: RetryRules = field(default_factory=RetryRules)


def pause_s(poll_s: float, *, sweep_s: float) -> float:
    """How long the driver waits for the bell before it looks by itself: a look at hundreds of sites has its price.

    Args:
        poll_s: what the operator set.
        sweep_s: how long the last look at all runs took.
    """
    return max(poll_s, min(_IDLE_SHARE * sweep_s, _LONGEST_PAUSE_S))


class RoundDriver:
    """Steps the runs of one database. Any number may run at once: each run has one lease."""

    def __init__(
        self,
        ctx: EngineContext,
        *,
        create_release: CreateRelease,
        holder: str | None = None,
        settings: DriverSettings | None = None,
    ) -> None:
        self._ctx = ctx
        self._settings = settings or DriverSettings()
        self._holder = holder or f"driver-{secrets.token_hex(8)}"
        self._performer = EffectsPerformer(
            ctx, create_release=create_release, rules=self._settings.retries, may_count=self._holds
        )
        self._busy: dict[RunId, asyncio.Task[None]] = {}
        self._held: set[RunId] = set()
        self._was_cut_off = False
        self.last_turn_at: datetime | None = None

    async def run(self) -> None:
        """Drive until cancelled; then finish nothing, give the leases back and leave the rest to the next."""
        _log.info("driver_started", holder=self._holder)
        try:
            while True:
                seen = self._ctx.wakeups.driver.count
                began = asyncio.get_running_loop().time()
                await self._sweep()
                took_s = asyncio.get_running_loop().time() - began
                await self._ctx.wakeups.driver.wait(seen, timeout_s=pause_s(self._settings.poll_s, sweep_s=took_s))
        finally:
            await self._stop()

    async def step(self, run_id: RunId) -> bool:
        """One transaction or one effect of one run; whether there was anything to do.

        This is the smallest thing that a driver does: between two of them it may die.
        """
        if await self._advance(run_id) is not TurnOutcome.NOTHING:
            return True
        effects = await self._performer.due(run_id)
        if effects:
            await self._performer.perform(effects[0])
        return bool(effects)

    async def _sweep(self) -> None:
        """Look at every run once; a run that fails is logged, and the others go on."""
        try:
            run_ids = await self._ctx.db.read_async("runs-to-drive", runs_to_drive)
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            self._note_cut_off(error)
            return
        except Exception:  # noqa: BLE001 # the driver's boundary: logged, and tried again at the next turn
            _log.exception("driver_cannot_read_runs")
            return
        for run_id in run_ids:
            try:
                # A phase that moved waits for sites now; where a round opened or ended, the next thing may follow.
                while await self._advance(run_id) is TurnOutcome.LEADS_ON:
                    pass
                await self._start_effects(run_id)
            except (DatabaseUnavailableError, DatabaseBusyError) as error:
                self._note_cut_off(error)
                return
            except Exception:  # noqa: BLE001 # the driver's boundary: one run's failure is not another's
                _log.exception("run_turn_failed", run_id=run_id)
        self._was_cut_off = False
        self._ctx.meter.put(metrics.RUNS_HELD, len(self._held.intersection(run_ids)))
        self.last_turn_at = self._ctx.now()

    def _note_cut_off(self, error: DatabaseUnavailableError | DatabaseBusyError) -> None:
        self._was_cut_off = True
        _log.warning("driver_waits_for_database", code=error.code, error=error.facts.get("error"))

    async def _advance(self, run_id: RunId) -> TurnOutcome:
        now = self._ctx.now()
        is_held, outcome = await self._ctx.db.run_tx_async(
            "advance-run", lambda session: self._advance_held(session, run_id, now=now)
        )
        if is_held:
            self._held.add(run_id)
        elif run_id in self._held:
            # It ran out, and another driver took it.
            self._held.discard(run_id)
            self._ctx.meter.count(metrics.LEASE_LOSSES)
            _log.warning("lease_lost", run_id=run_id, holder=self._holder)
        if outcome in {TurnOutcome.MOVED, TurnOutcome.LEADS_ON}:
            # Not for every message that was counted: that would let all sites look as often as all sites speak.
            self._ctx.wakeups.wake_sites()
        return outcome

    def _advance_held(self, session: Session, run_id: RunId, *, now: datetime) -> tuple[bool, TurnOutcome]:
        """Whether the lease is held, and what came of the turn under it."""
        lease = self._settings.lease
        # Without the database this driver was as good as none.
        alive = "" if self._was_cut_off else self._holder
        was_left_alone = has_lapsed(session, run_id, holder=alive, now=now, duration=lease)
        if not claim_lease(session, run_id, holder=self._holder, now=now, duration=lease):
            return False, TurnOutcome.NOTHING
        return True, advance_run(self._ctx, session, run_id, now=now, was_left_alone=was_left_alone)

    async def _start_effects(self, run_id: RunId) -> None:
        """Perform what is due beside the loop, one run's effects in order, so that time goes on for the other runs.

        The loop renews the run's lease meanwhile. Where that fails for so long that another driver takes over, both
        perform the effect: it gives the same bytes, and the outbox admits one completion.
        """
        if run_id in self._busy:
            return
        effects = await self._performer.due(run_id)
        if effects:
            task = asyncio.create_task(self._perform(effects), name=f"effects-{run_id}")
            self._busy[run_id] = task
            task.add_done_callback(lambda _: self._busy.pop(run_id, None))

    def _holds(self, session: Session, run_id: RunId) -> bool:
        return holds_lease(session, run_id, holder=self._holder, now=self._ctx.now())

    async def _perform(self, effects: tuple[DueEffect, ...]) -> None:
        try:
            for effect in effects:
                await self._performer.perform(effect)
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            _log.warning("effects_wait_for_database", run_id=effects[0].run_id, code=error.code)
        except Exception:  # noqa: BLE001 # the driver's boundary: the effect is still due, and is tried again
            _log.exception("effects_interrupted", run_id=effects[0].run_id)
        self._ctx.wakeups.wake_driver()

    async def _stop(self) -> None:
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        held = tuple(self._held)

        def give_back(session: Session) -> None:
            for run_id in held:
                release_lease(session, run_id, holder=self._holder)

        try:
            await self._ctx.db.run_tx_async("release-leases", give_back)
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            # They run out by themselves.
            _log.warning("leases_not_given_back", code=error.code, leases=len(held))
