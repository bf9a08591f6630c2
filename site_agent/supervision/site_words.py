"""What a site says of a round beside the messages of an exchange: that it takes part, is ready, declines or complains.

A word that did not get through is kept, and said again in its order: that a round is ready is not taken before it was
accepted. One that the coordinator refuses is said: it is past it, and there is nothing to add.
"""

from __future__ import annotations

import asyncio

import structlog

from fl_protocol.spec.context import ExchangeContext, RoundContext
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.link.client import CoordinatorClient
from site_agent.session import commands as do
from site_agent.state.journal import Journal

log = structlog.get_logger(__name__)

Word = do.AcceptRound | do.ReportReady | do.DeclineRound | do.SendComplaint


class SiteWords:
    """The words of one run's rounds, and those of them that are still to be said."""

    def __init__(self, client: CoordinatorClient, journal: Journal) -> None:
        """Speak to this coordinator; complaints are what the journal holds of their exchange."""
        self._client = client
        self._journal = journal
        self._unsaid: list[tuple[Word, RoundContext]] = []

    @property
    def has_unsaid_complaint(self) -> bool:
        """Whether the newest word that is still to be said is a complaint."""
        return bool(self._unsaid) and isinstance(self._unsaid[-1][0], do.SendComplaint)

    def keep(self, word: Word, round_context: RoundContext) -> None:
        """Say it when the others that are kept have been said."""
        self._unsaid.append((word, round_context))

    async def say_or_keep(self, word: Word, round_context: RoundContext) -> None:
        """Say it now where that is possible, else when it is."""
        if not self._unsaid:
            try:
                await self.say(word, round_context)
            except CoordinatorUnavailableError:
                pass
            else:
                return
        self.keep(word, round_context)

    async def say_kept(self) -> None:
        """Say what is kept. Raises CoordinatorUnavailableError at the first that does not get through."""
        while self._unsaid:
            await self.say(*self._unsaid[0])
            self._unsaid.pop(0)

    async def say(self, word: Word, round_context: RoundContext) -> None:
        """Say one word. Raises CoordinatorUnavailableError where it does not get through."""
        try:
            match word:
                case do.AcceptRound():
                    await self._client.accept_round(round_context)
                case do.ReportReady():
                    await self._client.report_ready(round_context)
                case do.DeclineRound():
                    await self._client.decline_round(round_context, word.kind, reason=word.reason)
                case do.SendComplaint():
                    await self._complain(word.context)
        except CoordinatorRefusedError as error:
            log.info("word_not_taken", run_id=round_context.run_id, code=error.refusal_code, status=error.status)
        if isinstance(word, do.SendComplaint):
            # It was kept for the complaint's sake, whatever round this site works on by now.
            await asyncio.to_thread(self._journal.close, word.context)

    async def _complain(self, context: ExchangeContext) -> None:
        record = await asyncio.to_thread(self._journal.read, context)
        if record is not None and record.is_complaint:
            await self._client.complain(context, complaint=record.message)
