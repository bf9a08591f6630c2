"""From a trainer's progress lines to the coordinator: state, step and steps, and nothing computed from data."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fl_protocol.spec.context import RoundContext
from site_agent.errors import LinkError
from site_agent.jobs.job_dir import ProgressLine
from site_agent.supervision.seams import SiteSeams

_SHORTEST_WAIT_S = 0.5


class ProgressRelay:
    """Sends the newest line, at most twice a second. A report that does not get through is not missed."""

    def __init__(self, seams: SiteSeams, round_context: RoundContext) -> None:
        """Report for this round."""
        self._seams = seams
        self._round = round_context
        self._newest: ProgressLine | None = None
        self._changed = asyncio.Event()

    def note(self, line: ProgressLine) -> None:
        """A new line. The loss goes to this site's own board, and no further (decision 3)."""
        self._newest = line
        self._changed.set()
        self._seams.board.change(
            lambda status: replace(status, activity=line.state.value, step=line.step, steps=line.steps, loss=line.loss)
        )

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            line = self._newest
            if line is None:
                continue
            try:
                await self._seams.client.report_progress(
                    self._round, line.state.value, step=line.step, steps=line.steps
                )
            except LinkError:
                # Progress is a courtesy; the next line says more.
                continue
            finally:
                await asyncio.sleep(_SHORTEST_WAIT_S)
