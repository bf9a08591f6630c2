"""From a trainer's progress lines to the coordinator: state, step and steps, and nothing computed from data."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime

from fl_protocol.spec.context import RoundContext
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.tracing import current_ids
from site_agent.errors import LinkError
from site_agent.jobs.job_dir import ProgressLine
from site_agent.supervision.round_spans import round_attributes, round_trace_of
from site_agent.supervision.seams import SiteSeams

_SHORTEST_WAIT_S = 0.5


class ProgressRelay:
    """Sends the newest line, at most twice a second. A report that does not get through is not missed."""

    def __init__(self, seams: SiteSeams, round_context: RoundContext) -> None:
        """Report for this round."""
        self._seams = seams
        self._round = round_context
        self._newest: ProgressLine | None = None
        self._stage: tuple[str, datetime] | None = None
        self._changed = asyncio.Event()

    def note(self, line: ProgressLine) -> None:
        """A new line. The loss goes to this site's own board, and no further (decision 3)."""
        self._newest = line
        self._changed.set()
        if self._stage is None or self._stage[0] != line.state.value:
            self.end_stage()
            self._stage = (line.state.value, self._seams.clock.now())
        self._seams.board.change(
            lambda status: replace(status, activity=line.state.value, step=line.step, steps=line.steps, loss=line.loss)
        )

    def end_stage(self) -> None:
        """The trainer's stage is over: tell it as a span. The trainer has no network, so its agent does."""
        if self._stage is not None:
            stage, began = self._stage
            named = round_attributes(self._round, self._seams.site_id)
            self._seams.tracing.tell(
                SpanName.TRAINER,
                {**named, "stage": stage},
                parent=current_ids() or round_trace_of(self._round),
                began=began,
                ended=self._seams.clock.now(),
            )
        self._stage = None

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
