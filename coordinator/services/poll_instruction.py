"""What should this site do now? Derived from the state of its rounds, and asked again until something is due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from coordinator.rounds.instructions import RoundRef
from coordinator.services.context import EngineContext
from coordinator.services.look_for_sites import SiteQuestion, look_for_sites
from coordinator.services.site_instructions import (
    Idle,
    Instruction,
    PublishedResult,
    RelayConfirmations,
    RelayKeys,
    RelayShares,
    RelaySurvivors,
)
from coordinator.services.site_presence import note_seen
from fl_protocol.ids import SiteId

MAX_WAIT_S = 25.0
_GATHER_S = 0.025
_LOOK_AGAIN_S = 2.0
"""Another process may have moved the round without ringing here."""
_LOOKS_A_SECOND = 25.0
"""All sites that wait look so often together at most, so that many idle ones do not keep a core busy."""


async def poll_instruction(
    ctx: EngineContext, *, site_id: SiteId, holding: Sequence[RoundRef], wait_s: float
) -> Instruction:
    """The next thing that this site should do, waited for at most ``wait_s`` and 25 seconds.

    Raises:
        SiteNotActiveError: the site may not act.
    """
    started = ctx.now()
    question = SiteQuestion(site_id=site_id, holding=tuple(holding))
    if wait_s > 0:
        # Most who ask have just done what they were told, as others do about now, and nothing new is due before the
        # last of them: they are looked up together, or by the bell's ring.
        await ctx.wakeups.sites.wait(ctx.wakeups.sites.count, timeout_s=min(_GATHER_S, wait_s))
    while True:
        seen = ctx.wakeups.sites.count
        seen_at = ctx.now()
        answer = await ctx.looks.ask(question, partial(look_for_sites, ctx))
        if answer.is_note_due:
            await _note_seen(ctx, site_id, seen_at)
        if answer.instruction is not None:
            _count_relayed(ctx, site_id, answer.instruction)
            return answer.instruction
        left_s = min(wait_s, MAX_WAIT_S) - (ctx.now() - started).total_seconds()
        if left_s <= 0:
            return Idle(retry_after_s=0.0)
        pause_s = pause_before_looking_again_s(ctx.wakeups.sites.n_waiting)
        await ctx.wakeups.sites.wait(seen, timeout_s=min(left_s, pause_s))


def pause_before_looking_again_s(n_waiting: int) -> float:
    """How long a site that waits beside ``n_waiting`` others waits for the bell before it looks by itself."""
    return max(_LOOK_AGAIN_S, n_waiting / _LOOKS_A_SECOND)


async def _note_seen(ctx: EngineContext, site_id: SiteId, now: datetime) -> None:
    """A run may have waited for this site."""
    await ctx.db.run_tx_async("note-site-seen", lambda session: note_seen(session, site_id, now=now))
    ctx.wakeups.wake_driver()


def _count_relayed(ctx: EngineContext, site_id: SiteId, instruction: Instruction) -> None:
    match instruction:
        case RelayKeys(exchange=context, m2=relayed):
            pass
        case RelayShares(exchange=context, m4=relayed):
            pass
        case RelaySurvivors(exchange=context, m6=relayed):
            pass
        case RelayConfirmations(exchange=context, m8=relayed):
            pass
        case PublishedResult(exchange=context, m10=relayed):
            pass
        case _:
            return
    ctx.traffic.add(site_id, context, len(relayed))
