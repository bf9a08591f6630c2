"""Performs what the outbox asks for, again and again until it is done; never silently.

A full disk, a storage or a database that is away costs time: such an effect is tried for as long as it takes, and
``runs show`` says so. Only what the bytes themselves forbid is given up, for they will be the same next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from coordinator.db.models import OutboxEntry
from coordinator.db.outbox import due_effects, note_effect_failure, take_open_effect
from coordinator.errors import AggregationError, DatabaseBusyError, DatabaseUnavailableError
from coordinator.rounds.events import EffectGaveUp
from coordinator.services.aggregate_round import aggregate_round
from coordinator.services.context import EngineContext
from coordinator.services.effect_kinds import EffectKind, context_from_payload, ref_from_payload
from coordinator.services.event_rows import store_event
from coordinator.services.fold_round import fold_round
from fl_protocol.errors import ProtocolError, WardroundError
from fl_protocol.ids import RunId
from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import TraceIds, round_trace, run_trace

CreateRelease = Callable[[RunId], Awaitable[None]]
MayCount = Callable[[Session, RunId], bool]

_log = structlog.get_logger("coordinator.driver")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """How often, and how long apart, an effect is tried.

    Attributes:
        max_attempts: of an effect of a round that its own inputs forbid; others are tried for ever.
        first_pause: doubled after each failure.
        longest_pause: where the doubling ends.
    """

    max_attempts: int = 6
    first_pause: timedelta = timedelta(seconds=0.5)
    longest_pause: timedelta = timedelta(seconds=60)

    def pause(self, attempts: int) -> timedelta:
        """How long to wait after the ``attempts``-th failure, from 1."""
        doublings: int = 2 ** min(attempts - 1, 20)
        return min(self.first_pause * doublings, self.longest_pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class DueEffect:
    """A row of the outbox, outside its session."""

    effect_id: int
    run_id: RunId
    kind: EffectKind
    payload: Mapping[str, object]
    attempts: int


class EffectsPerformer:
    """Performs one effect at a time; safe to run again after any crash."""

    def __init__(
        self, ctx: EngineContext, *, create_release: CreateRelease, rules: RetryRules, may_count: MayCount
    ) -> None:
        """Take the parts.

        Args:
            ctx: the engine.
            create_release: performs CREATE_RELEASE.
            rules: for failures.
            may_count: whether this driver still holds the run's lease; another's failures are not its own.
        """
        self._ctx = ctx
        self._may_count = may_count
        self._create_release = create_release
        self._rules = rules

    async def due(self, run_id: RunId) -> tuple[DueEffect, ...]:
        """What may be tried now; nothing where another driver holds the run."""
        now = self._ctx.now()

        def look(session: Session) -> tuple[DueEffect, ...]:
            if not self._may_count(session, run_id):
                return ()
            return tuple(_due(row) for row in due_effects(session, run_id, now=now))

        return await self._ctx.db.read_async("due-effects", look)

    async def perform(self, effect: DueEffect) -> bool:
        """Try an effect once; whether it succeeded. Its completion is written by the service that performs it."""
        try:
            place, parent = _place(effect)
            with self._ctx.tracing.span(SpanName.EFFECT, {**place, "effect": effect.kind.value}, parent=parent):
                await self._perform(effect)
        except (DatabaseUnavailableError, DatabaseBusyError):
            # Nothing is wrong with the effect, and nobody could be told: it stays due.
            raise
        except Exception as error:  # noqa: BLE001 # the driver's boundary: logged, counted, tried again
            _log.exception("effect_failed", run_id=effect.run_id, effect=effect.kind.value, attempt=effect.attempts + 1)
            self._ctx.meter.count(metrics.EFFECT_FAILURES, effect.kind.value)
            await self._note_failure(effect, error)
            return False
        return True

    async def _perform(self, effect: DueEffect) -> None:
        ctx = self._ctx
        match effect.kind:
            case EffectKind.COMPUTE_SUM:
                context = context_from_payload(effect.run_id, effect.payload)
                await asyncio.to_thread(aggregate_round, ctx, context, effect_id=effect.effect_id)
            case EffectKind.FOLD_ROUND:
                ref = ref_from_payload(effect.run_id, effect.payload)
                await asyncio.to_thread(fold_round, ctx, ref, effect_id=effect.effect_id)
            case EffectKind.CREATE_RELEASE:
                await self._create_release(effect.run_id)
                now = ctx.now()

                def complete(session: Session) -> None:
                    take_open_effect(session, effect.effect_id, now=now)

                await ctx.db.run_tx_async("complete-release", complete)

    async def _note_failure(self, effect: DueEffect, error: Exception) -> None:
        now = self._ctx.now()
        await self._ctx.db.run_tx_async(
            "note-effect-failure", lambda session: self._count(session, effect, error=error, now=now)
        )

    def _count(self, session: Session, effect: DueEffect, *, error: Exception, now: datetime) -> None:
        if not self._may_count(session, effect.run_id):
            return
        pause = self._rules.pause(effect.attempts + 1)
        code = error.code if isinstance(error, WardroundError) else type(error).__name__
        attempts = note_effect_failure(session, effect.effect_id, error=f"{code}: {error}", now=now, pause=pause)
        is_forbidden = isinstance(error, ProtocolError | AggregationError)
        if attempts < self._rules.max_attempts or not is_forbidden or effect.kind is EffectKind.CREATE_RELEASE:
            return
        if take_open_effect(session, effect.effect_id, now=now):
            about = (
                context_from_payload(effect.run_id, effect.payload)
                if effect.kind is EffectKind.COMPUTE_SUM
                else ref_from_payload(effect.run_id, effect.payload)
            )
            store_event(session, EffectGaveUp(), about, now=now)


def _place(effect: DueEffect) -> tuple[dict[str, str | int], TraceIds]:
    """What an effect is about, as a span says it, and the trace that it belongs to."""
    if effect.kind is EffectKind.CREATE_RELEASE:
        return {"run_id": effect.run_id}, run_trace(effect.run_id)
    ref = ref_from_payload(effect.run_id, effect.payload)
    named: dict[str, str | int] = {"run_id": ref.run_id, "round_index": ref.round_index}
    named["round_attempt"] = ref.round_attempt
    return named, round_trace(ref.run_id, ref.round_index, ref.round_attempt)


def _due(row: OutboxEntry) -> DueEffect:
    return DueEffect(
        effect_id=row.id,
        run_id=RunId(row.run_id),
        kind=EffectKind(row.kind),
        payload=row.payload,
        attempts=row.attempts,
    )
