"""The loop that keeps the site's identity alive: it checks in, renews at half of the certificate's life, and says so.

Knows when; what is asked and what is believed of the answer ``enrolment.renewal`` knows. It never ends a round: a
certificate is changed under calls that go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.signing.site_statement import SiteStatementKind
from site_agent.enrolment.errors import EnrolmentUnreachableError
from site_agent.enrolment.renewal import IdentityKeeper, Record, renewal_instant
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.folder import SiteFolder
from site_agent.link.backoff import Backoff
from site_agent.supervision.status_board import StatusBoard

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.5
_AFTER_REFUSAL = timedelta(seconds=30)


class IdentityLoop:
    """Turns for ever; one call at a time."""

    def __init__(
        self,
        keeper: IdentityKeeper,
        *,
        folder: SiteFolder,
        clock: Clock,
        draw: Callable[[], float],
        backoff: Backoff,
        board: StatusBoard,
        record: Record,
    ) -> None:
        """Take the keeper and the seams; ``draw`` gives 0 to 1, for the jitter."""
        self._keeper = keeper
        self._folder = folder
        self._clock = clock
        self._draw = draw
        self._backoff = backoff
        self._board = board
        self._record = record
        self._renew_at = self._planned()
        self._check_in_at = clock.now()
        self._not_before = clock.now()
        self._has_started = False
        self._told: str | None = None

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def turn(self) -> None:
        """Do what is due now, if anything is."""
        now = self._clock.now()
        is_wished = self._folder.renewal_wish.exists()
        if now < self._not_before and not is_wished:
            return
        try:
            # One that was begun is gone on with, whenever it was: by a start before, or without an answer.
            if is_wished or now >= self._renew_at or self._keeper.has_begun_renewal:
                await self._renew(is_wished=is_wished)
            elif now >= self._check_in_at:
                await self._check_in()
            else:
                return
        except (CoordinatorUnavailableError, EnrolmentUnreachableError) as error:
            self._not_before = self._clock.now() + timedelta(seconds=self._backoff.next_wait_s())
            log.warning("identity_waits", code=error.code, cause=str(error))
        except WardroundError as error:
            self._not_before = self._clock.now() + _AFTER_REFUSAL
            await self._tell(error)
        else:
            self._told = None
            self._backoff.reset()

    async def _renew(self, *, is_wished: bool) -> None:
        if is_wished:
            # Before the attempt: a wish that cannot be granted is said in the log, and not tried for ever.
            self._folder.renewal_wish.unlink(missing_ok=True)
        identity = await self._keeper.renew()
        self._has_started = True
        self._renew_at = self._planned()
        log.info("certificate_renewed", site_id=identity.site_id, until=self._until().isoformat())

    async def _check_in(self) -> None:
        kind = SiteStatementKind.PRESENT if self._has_started else SiteStatementKind.STARTED
        after_s = await self._keeper.check_in(kind)
        self._has_started = True
        self._check_in_at = self._clock.now() + timedelta(seconds=after_s)

    def _planned(self) -> datetime:
        at = renewal_instant(self._keeper.certificate, self._draw())
        self._board.certificate(until=self._until(), renews_at=at)
        return at

    def _until(self) -> datetime:
        return self._keeper.certificate.not_valid_after_utc

    async def _tell(self, error: WardroundError) -> None:
        """Say and record a refusal once, and not once a repetition."""
        # A coordinator of an earlier version knows no such call, and refuses without a code.
        code = (error.refusal_code if isinstance(error, CoordinatorRefusedError) else "") or error.code
        log.warning("identity_refused", code=code, cause=str(error), advice=str(getattr(error, "advice", "")))
        if code == self._told:
            return
        self._told = code
        facts: dict[str, AuditFact] = {"code": code}
        await asyncio.to_thread(self._record, AuditKind.RENEWAL_REFUSED, facts)
