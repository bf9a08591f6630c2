"""While a masked vector is on its way its phase waits: progress puts the deadline off, and so does waiting for room.

Invariant: only bytes that never came before are progress, so that an upload which is altered and sent again for ever
puts off nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.exchanges import find_upload
from coordinator.db.models import Run
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.services.context import EngineContext
from coordinator.services.exchange_steps import Incoming, check_step_is_open, note_progress
from coordinator.services.round_access import ExchangeAccess, require_exchange
from fl_protocol.ids import SiteId

_PROGRESS_BYTES = 16 << 20
_PROGRESS_EVERY = timedelta(seconds=30)
_PROGRESS_PAUSE = timedelta(seconds=1)
"""How often the phase's deadline is put off while an upload is on its way: after so many bytes, but on a fast line
after the pause at the earliest, and on a slow one after thirty seconds at the latest, or a third of the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What of an upload is noted as progress, when that was, and how long a slow one may go on until the next note."""

    n_bytes: int
    at: datetime | None
    every: timedelta

    @classmethod
    def of(cls, n_bytes: int, *, at: datetime | None, pause: timedelta) -> Noted:
        """``pause``: how long the phase waits without progress."""
        return cls(n_bytes=n_bytes, at=at, every=min(_PROGRESS_EVERY, pause / 3))


class ProgressNotes:
    """Puts off the phase's deadline now and then, while an upload is on its way."""

    def __init__(self, ctx: EngineContext, incoming: Incoming, noted: Noted) -> None:
        """Go on from what is noted of this upload."""
        self._ctx = ctx
        self._incoming = incoming
        self._noted_bytes = noted.n_bytes
        self._noted_at = noted.at
        self._note_every = noted.every
        self._writing: asyncio.Task[None] | None = None

    async def hear(self, held: int) -> None:
        """So much is held now. What is noted is written beside the stream, which does not wait for the database.

        Raises:
            LateError, WrongPhaseError, SiteNotActiveError: the last note found that the site may not go on.
        """
        if self._writing is not None:
            if not self._writing.done():
                return
            await self._writing
        now = self._ctx.now()
        waited = None if self._noted_at is None else now - self._noted_at
        is_many = held - self._noted_bytes >= _PROGRESS_BYTES and (waited is None or waited >= _PROGRESS_PAUSE)
        if is_many or (held > self._noted_bytes and (waited is None or waited >= self._note_every)):
            self._noted_bytes, self._noted_at = held, now
            self._writing = asyncio.create_task(_note_received(self._ctx, self._incoming, held))

    async def settle(self) -> None:
        """Wait for what is still being written; the stream has ended, and how is its own matter."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)


async def _note_received(ctx: EngineContext, incoming: Incoming, received: int) -> None:
    now = ctx.now()

    def write(session: Session) -> None:
        access = require_exchange(session, incoming.site_id, incoming.exchange)
        check_is_collecting(access, incoming.site_id)
        upload = find_upload(session, access.context, incoming.site_id)
        if upload is not None:
            upload.received_bytes = received
        note_progress(access, now=now, pause=phase_pause(ctx, session, access))

    await ctx.db.run_tx_async("note-upload", write)


def note_waiting(ctx: EngineContext, session: Session, incoming: Incoming) -> None:
    """A site that has to wait for a place, for room or for the store is at work: the phase waits for it."""
    access = require_exchange(session, incoming.site_id, incoming.exchange)
    check_is_collecting(access, incoming.site_id)
    note_progress(access, now=ctx.now(), pause=phase_pause(ctx, session, access))


def check_is_collecting(access: ExchangeAccess, site_id: SiteId) -> None:
    """Raise LateError, WrongPhaseError or NotInCohortError where the exchange takes no vector of this site now."""
    check_step_is_open(access, site_id=site_id, states=(ExchangeState.COLLECTING,), members=access.exchange.u2)


def phase_pause(ctx: EngineContext, session: Session, access: ExchangeAccess) -> timedelta:
    """How long the run's phases wait without progress."""
    run = session.get(Run, access.context.run_id)
    assert run is not None, "an exchange's run exists"
    return ctx.roles.run_facts(run).rules.phase_deadline
