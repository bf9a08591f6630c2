"""The trainer's own halves in this process, for a study's arms: one model, every site's records, no protocol.

What trains and what evaluates here is what trains and evaluates at a site; only the job folder, the agent and the sum
around it are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.progress import TableProgress, Work
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.metrics import EvaluationTotals, are_sites_compared, counted_by_trainer, counts_of
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.seeds import training_seed
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import ProgressState
from site_agent.training.adapter_io import adapter_parameters, initial_adapter, load_adapter, read_adapter
from site_agent.training.data import Record
from site_agent.training.evaluating import evaluate
from site_agent.training.exchange import ALGORITHM_SEGMENTS
from site_agent.training.exchange.fedavg_lora import NOT_EVALUATED, RawSegments, training_segments
from site_agent.training.local import LOCAL_RULES
from site_agent.training.local.rule import RoundStart
from site_agent.training.progress import ProgressReporter
from site_agent.training.recipe import local_steps, train
from site_agent.training.task_half import LoadedTask, PreparesRecords
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples

Adapter = Mapping[str, NDArray[np.float32]]

NOTHING_KEPT: Mapping[str, NDArray[Any]] = {}
"""What a local rule finds at a site before its first round."""


class StepCounter(ProgressReporter):
    """Hears of every optimiser step and every evaluated batch, counts them, and tells how far the table is."""

    def __init__(self, shown: TableProgress) -> None:
        """Nothing is counted yet."""
        super().__init__(Path())
        self._shown = shown
        self._state: ProgressState | None = None
        self._step = 0
        self._at = 0.0
        self.n_steps = 0

    def report(
        self,
        state: ProgressState,
        *,
        step: int,
        steps: int,
        n_records: int = 0,
        loss: float | None = None,
        is_resumed: bool = False,
    ) -> None:
        """Count what was done since the last word."""
        del n_records, loss, is_resumed
        now = time.monotonic()
        done = step - self._step
        if state is self._state and done > 0:
            is_training = state is ProgressState.TRAINING
            self.n_steps += done if is_training else 0
            work = Work(steps=done, records=0) if is_training else Work(steps=0, records=done)
            self._shown.did(work, now - self._at, what=f"{state.value} {step}/{steps}")
        self._state, self._step, self._at = state, step, now

    def beat(self) -> None:
        """A pass within a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRound:
    """What a round at a site gave: raw segments of its payload, its steps, and what its local rule keeps there."""

    raw: RawSegments
    n_steps: int
    private: Mapping[str, NDArray[Any]]


class Workshop:
    """A base model with the run's adapter on it, set to another value for each call."""

    def __init__(self, task: LoadedTask, *, shown: TableProgress, private_folder: Path | None = None) -> None:
        """Keep the task; every call sets its adapter anew.

        Args:
            task: the model.
            shown: hears of steps.
            private_folder: where a task keeps what is costly; None: no task is asked to prepare its records.
        """
        self._task = task
        self._private_folder = private_folder
        self._counter = StepCounter(shown)

    @property
    def layout(self) -> AdapterLayout:
        """The adapter's layout."""
        return self._task.layout

    def initial_state(self, spec: RunSpec) -> PublicState:
        """Adapter v0 of the run's seed."""
        return initial_adapter(self._task.layout, spec.local.seed)

    def train_round(
        self,
        spec: RunSpec,
        state: PublicState,
        *,
        site: str,
        records: Sequence[Record],
        round_index: int,
        private: Mapping[str, NDArray[Any]] = NOTHING_KEPT,
    ) -> TrainedRound:
        """One round at one site, from the global adapter, as the trainer does it.

        Args:
            spec: the run.
            state: the public state that the round starts from.
            site: the name from which its draws are seeded.
            records: what it trains on.
            round_index: from 0.
            private: what the local rule kept at this site in its last round.

        Raises:
            TrainerError: training diverged, or no record can be used.
        """
        self._prepare(records)
        load_adapter(self._task.module, state.adapter, layout=self._task.layout)
        start = RoundStart(spec=spec, round_index=round_index, layout=self._task.layout, state=state, private=private)
        half = LOCAL_RULES[spec.local.rule]
        seed = training_seed(run_seed=spec.local.seed, site_id=SiteId(site), round_index=round_index, round_attempt=0)
        rule = local_steps(spec, round_index)
        examples = sample_examples(
            tuple(records), self._task, n_examples=rule.n_examples, seed=seed, counts=FitCounts()
        )
        before = self._counter.n_steps
        correct = half.correction(start, adapter_parameters(self._task.module))
        trained = train(self._task, examples, rule=rule, seed=seed, progress=self._counter, correct=correct)
        raw = training_segments(
            self._task.layout,
            local_adapter=read_adapter(self._task.module),
            global_adapter=state.adapter,
            trained=trained,
            evaluated=NOT_EVALUATED,
            counts=counted_by_trainer(spec.evaluation.metrics),
            initial=NOT_EVALUATED if are_sites_compared(spec.evaluation.metrics) else None,
        )
        raw |= ALGORITHM_SEGMENTS[spec.aggregation.algorithm](start, read_adapter(self._task.module))
        outcome = half.finish(start, raw["adapter_update"])
        raw |= outcome.segments
        return TrainedRound(raw=raw, n_steps=self._counter.n_steps - before, private=outcome.private or NOTHING_KEPT)

    def evaluate(
        self, spec: RunSpec, adapter: Adapter, records: Iterable[Record], *, training: Sequence[Record] = ()
    ) -> EvaluationTotals:
        """The sums of one site's records under an adapter; ``training``: what that site may train on.

        Raises:
            TrainerError: the loss is not finite.
        """
        self._prepare(training)
        load_adapter(self._task.module, dict(adapter), layout=self._task.layout)
        examples = list(encode_records(records, self._task, FitCounts()))
        sums = evaluate(self._task, examples, progress=self._counter)
        return EvaluationTotals(
            loss_sum=sums.loss_sum,
            n_units=sums.n_tokens,
            n_records=sums.n_records,
            counts={name: sums.counts.get(name, 0) for name in counts_of(spec.evaluation.metrics)},
        )

    def _prepare(self, training: Sequence[Record]) -> None:
        if self._private_folder is not None and isinstance(self._task, PreparesRecords):
            self._task.prepare(training, private_folder=self._private_folder)
