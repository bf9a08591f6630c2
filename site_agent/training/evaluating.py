"""The evaluation in a job: of the adapter that was received and, where the run compares sites, of adapter v0.

Knows no file and no round; what it finds is this site's alone, until the agent weighs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.metrics import EvaluationTotals, are_sites_compared, counts_of, values_of
from fl_protocol.spec.run_spec import RunSpec
from site_agent.jobs.job_dir import ProgressState
from site_agent.training.adapter_io import initial_adapter, load_adapter, verify_initial_adapter
from site_agent.training.checkpoints import Checkpoint
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.exchange.fedavg_lora import NOT_EVALUATED, EvaluationSums
from site_agent.training.progress import ProgressReporter
from site_agent.training.task_half import LoadedTask, TaskExample
from site_agent.training.tasks.drawing import FitCounts

_EVALUATION_BATCH = 8


def evaluate(
    task: LoadedTask,
    examples: Sequence[TaskExample],
    *,
    progress: ProgressReporter,
    keep: Callable[[Callable[[], Checkpoint]], None] = lambda _: None,
    resumed: Checkpoint | None = None,
    n_before: int = 0,
    n_in_all: int | None = None,
) -> EvaluationSums:
    """Sum the loss, and what the metrics count, over held-out examples; none give zeros.

    Args:
        task: with the adapter that is evaluated.
        examples: the held-out ones.
        progress: is told of each batch.
        keep: is offered a checkpoint after each batch.
        resumed: where an earlier trainer left the job.
        n_before: examples that another evaluation of this job went through before.
        n_in_all: examples that all evaluations of this job go through; None: this is the only one.

    Raises:
        LossNotFiniteError: the loss is NaN or infinite.
    """
    if resumed is not None and resumed.is_evaluated:
        return resumed.evaluated
    sums = NOT_EVALUATED if resumed is None else resumed.evaluated
    by_length = sorted(examples, key=lambda example: example.n_tokens)
    n_examples = len(by_length)
    steps = n_before + n_examples if n_in_all is None else n_in_all
    step = n_before + sums.n_records
    progress.report(ProgressState.EVALUATING, step=step, steps=steps, is_resumed=resumed is not None)
    with torch.inference_mode():
        for start in range(sums.n_records, n_examples, _EVALUATION_BATCH):
            batch = by_length[start : start + _EVALUATION_BATCH]
            answer = task.evaluate(batch)
            sums = EvaluationSums(
                loss_sum=sums.loss_sum + answer.loss_sum,
                n_tokens=sums.n_tokens + answer.n_units,
                n_records=sums.n_records + len(batch),
                counts={name: sums.counts.get(name, 0) + counted for name, counted in answer.counts.items()},
            )
            keep(partial(Checkpoint, evaluated=sums, is_evaluated=sums.n_records == n_examples))
            step = n_before + sums.n_records
            progress.report(ProgressState.EVALUATING, step=step, steps=steps, n_records=step)
    if not math.isfinite(sums.loss_sum):
        raise LossNotFiniteError("the evaluation loss is not finite")
    return sums


def n_evaluations(spec: RunSpec, state: PublicState) -> int:
    """How often a job goes through its held-out records: twice where it compares another adapter with v0."""
    return 2 if are_sites_compared(spec.evaluation.metrics) and state.version > 0 else 1


def evaluate_initial(
    task: LoadedTask,
    examples: Sequence[TaskExample],
    *,
    state: PublicState,
    spec: RunSpec,
    evaluated: EvaluationSums,
    progress: ProgressReporter,
) -> EvaluationSums | None:
    """The sums of adapter v0 over the same examples, where the run compares sites; the received adapter is put back.

    It is evaluated anew, though an earlier round did: so every site has it, whenever it joined, of the very records, on
    the very device, and nothing has to be kept that could be lost or be another's.

    Args:
        task: with the adapter of ``state``.
        examples: those of ``evaluated``; none in a round that does not evaluate.
        state: what the round started from.
        spec: the run.
        evaluated: the sums under the adapter of ``state``.
        progress: is told of each batch.

    Returns:
        None where the run compares nothing.

    Raises:
        InitialAdapterMismatchError: the run names another adapter v0 than its seed gives.
        LossNotFiniteError: the loss is NaN or infinite.
    """
    if not are_sites_compared(spec.evaluation.metrics):
        return None
    if state.version == 0 or not evaluated.n_tokens:
        return evaluated
    initial = initial_adapter(task.layout, spec.local.seed)
    verify_initial_adapter(initial, task.layout, spec)
    load_adapter(task.module, initial.adapter, layout=task.layout)
    n_before = len(examples)
    found = evaluate(task, examples, progress=progress, n_before=n_before, n_in_all=2 * n_before)
    load_adapter(task.module, state.adapter, layout=task.layout)
    return found


def metrics_of_evaluation(
    evaluated: EvaluationSums, fits: FitCounts, spec: RunSpec, *, initial: EvaluationSums | None = None
) -> dict[str, float]:
    """What this site may see of its own evaluation."""
    metrics: dict[str, float] = {"held_out_cut": fits.cut, "held_out_left_out": fits.no_room}
    if evaluated.n_tokens:
        metrics["eval_loss"] = evaluated.loss_sum / evaluated.n_tokens
        totals = EvaluationTotals(
            loss_sum=evaluated.loss_sum,
            n_units=evaluated.n_tokens,
            n_records=evaluated.n_records,
            counts={name: evaluated.counts.get(name, 0) for name in counts_of(spec.evaluation.metrics)},
        )
        of_run = values_of(spec.evaluation.metrics, totals)
        metrics |= {f"eval_{name}": value for name, value in of_run.items()}
    if initial is not None and initial.n_tokens:
        metrics["initial_eval_loss"] = initial.loss_sum / initial.n_tokens
    return metrics
