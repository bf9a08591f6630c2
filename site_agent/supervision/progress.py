"""From a trainer's progress lines to the coordinator: state, step and steps, and nothing computed from data."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from fl_protocol.spec.context import RoundContext
from fl_protocol.spec.metrics import are_sites_compared
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.tracing import current_ids
from site_agent.errors import LinkError
from site_agent.jobs.job_dir import ProgressLine, ProgressState
from site_agent.supervision.round_spans import round_attributes, round_trace_of
from site_agent.supervision.seams import SiteSeams

_SHORTEST_WAIT_S = 0.5
_ORDER = (ProgressState.LOADING, ProgressState.EVALUATING, ProgressState.TRAINING)


class ProgressRelay:
    """Sends the newest line, at most twice a second. A report that does not get through is not missed.

    Safety: a trainer that is taken over chooses these numbers. So a report only goes forward, within the steps that
    the run has, and towards one number of them: over a round, that is one bit a step at most.
    """

    def __init__(
        self, seams: SiteSeams, round_context: RoundContext, *, most_steps: Mapping[ProgressState, int]
    ) -> None:
        """Report for this round; ``most_steps`` is what a line of each state may count to."""
        self._most_steps = most_steps
        self._told: dict[ProgressState, tuple[int, int]] = {}
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
            if line is None or not self._may_tell(line):
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

    def _may_tell(self, line: ProgressLine) -> bool:
        """Whether a line goes forward as a run's own progress can."""
        if not line.step <= line.steps <= self._most_steps.get(line.state, 0):
            return False
        step, steps = self._told.get(line.state, (-1, line.steps))
        if (
            line.steps != steps
            or line.step < step
            or any(order_of(state) > order_of(line.state) for state in self._told)
        ):
            return False
        self._told[line.state] = (line.step, line.steps)
        return True


def order_of(state: ProgressState) -> int:
    """States come in this order in every job."""
    return _ORDER.index(state)


def most_steps(spec: RunSpec) -> Mapping[ProgressState, int]:
    """How far each state of a run's job may count, as the approved specification says."""
    return {
        ProgressState.LOADING: 1,
        # Twice where adapter v0 is evaluated beside the one that was received.
        ProgressState.EVALUATING: spec.evaluation.max_records * (1 + are_sites_compared(spec.evaluation.metrics)),
        ProgressState.TRAINING: spec.local.steps,
    }
