"""One job from top to bottom: load, evaluate the adapter that was received, train it, write what the sum needs.

The job directory is all that this module knows of the world: no network, no key, no round but its number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.learning_rate import learning_rate_at
from fl_protocol.spec.metrics import counted_by_trainer
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.spec.tasks import TaskKind
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import (
    GLOBAL_FILE,
    LAYOUT_FILE,
    PAYLOAD_FILE,
    JobFileMissingError,
    JobKind,
    JobResult,
    JobSpec,
    ProgressState,
    read_document,
    write_file,
)
from site_agent.training.adapter_io import (
    adapter_parameters,
    load_adapter,
    read_adapter,
    set_adapter_dropout,
    verify_initial_adapter,
    verify_layout,
)
from site_agent.training.checkpoints import Checkpoint, CheckpointStore
from site_agent.training.counting import count_codes
from site_agent.training.device import Compute, choose_compute, peak_memory_bytes
from site_agent.training.evaluating import (
    evaluate,
    evaluate_initial,
    metrics_of_evaluation,
    n_evaluations,
)
from site_agent.training.exchange import ALGORITHM_SEGMENTS
from site_agent.training.exchange.fedavg_lora import (
    NOT_EVALUATED,
    EvaluationSums,
    RawSegments,
    evaluation_segments,
    training_segments,
)
from site_agent.training.fitting import is_out_of_memory, training_memory_error
from site_agent.training.identity import identity_of_job
from site_agent.training.inspecting import inspect_for_job
from site_agent.training.job_data import folder_of_base, read_registered_dataset, split_of_run
from site_agent.training.local import LOCAL_RULES
from site_agent.training.local.rule import RoundStart
from site_agent.training.local.steps import LocalSteps, StepDone, StepsState, TrainingSums, train_in_steps
from site_agent.training.private_state import (
    digest_of_private_state,
    read_private_state,
    write_next_private_state,
)
from site_agent.training.progress import ProgressReporter
from site_agent.training.shelf import ModelShelf
from site_agent.training.task_half import LoadedTask, PreparesRecords, TaskExample
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples
from site_agent.training.versions import installed_versions

CHECKPOINT_EVERY_S = 30.0
"""The shortest time between two checkpoints; the first comes after twice that, so that a small round writes none."""


def perform_job(
    job_dir: Path,
    job: JobSpec,
    *,
    shelf: ModelShelf,
    progress: ProgressReporter,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> JobResult:
    """Do one job and write its payload; the caller closes it with the result, or with the error as a typed failure.

    Raises:
        TrainerError: with advice for the site's operator.
        RunSpecFaultsError: the run's specification is not valid.
        JobDirectoryError: a file of the contract is missing or wrong.
        ProtocolError: the global adapter or the layout is not well formed.
    """
    if job.kind is JobKind.INSPECT:
        return inspect_for_job(job_dir, job)
    spec = parse_run_spec(job.run_spec or {})
    if spec.task.kind is TaskKind.CONCEPT_VOCABULARY:
        return count_codes(job_dir, job, spec, progress=progress)
    return train_adapter(job_dir, job, shelf=shelf, progress=progress, checkpoint_every_s=checkpoint_every_s)


def train_adapter(
    job_dir: Path,
    job: JobSpec,
    *,
    shelf: ModelShelf,
    progress: ProgressReporter,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> JobResult:
    """Evaluate the global adapter and, where the job says so, train it: the segments of one round.

    Goes on from the job's checkpoint where an earlier trainer left one.

    Raises:
        As ``perform_job``.
    """
    started = time.monotonic()
    progress.report(ProgressState.LOADING, step=0, steps=1)
    compute = prepare_compute(job)

    # Load: what was approved, this site's records, the model, and the adapter that all sites start from.
    spec = parse_run_spec(job.run_spec or {})
    dataset = read_registered_dataset(job, spec)
    split = split_of_run(dataset, spec)
    model = take_model(job, spec, shelf=shelf, compute=compute)
    if isinstance(model, PreparesRecords):
        model.prepare(split.training, private_folder=job_dir.parent)
    state = receive_state(job_dir, model, spec)
    start = RoundStart(
        spec=spec,
        round_index=job.round_index,
        layout=model.layout,
        state=state,
        private=read_private_state(job_dir),
    )
    private_sha256 = digest_of_private_state(start.private)
    belongs_to = identity_of_job(
        job, spec, compute=compute, state=state, dataset=dataset, private_sha256=private_sha256
    )
    checkpoints = CheckpointStore(job_dir, belongs_to=belongs_to, every_s=checkpoint_every_s)
    resumed = checkpoints.newest()
    progress.report(ProgressState.LOADING, step=1, steps=1)

    # Evaluate the adapter that was received, on records that are never trained on.
    evaluated, held_out_fits = NOT_EVALUATED, FitCounts()
    held_out: list[TaskExample] = []
    if job.kind is JobKind.EVALUATE or job.round_index % spec.evaluation.every == 0:
        held_out += encode_records(split.held_out, model, held_out_fits)
        evaluated = evaluate(
            model,
            held_out,
            progress=progress,
            keep=checkpoints.offer,
            resumed=resumed,
            n_in_all=n_evaluations(spec, state) * len(held_out),
        )
    initial = evaluate_initial(model, held_out, state=state, spec=spec, evaluated=evaluated, progress=progress)
    metrics = metrics_of_evaluation(evaluated, held_out_fits, spec, initial=initial)
    counts = counted_by_trainer(spec.evaluation.metrics)

    # Train, and put into the payload what the secure sum is to add up.
    if job.kind is JobKind.EVALUATE:
        segments = evaluation_segments(evaluated, counts, initial=initial)
    else:
        fits = FitCounts()
        rule, half = local_steps(spec, job.round_index), LOCAL_RULES[spec.local.rule]
        examples = sample_examples(split.training, model, n_examples=rule.n_examples, seed=job.seed, counts=fits)
        trained = train(
            model,
            examples,
            rule=rule,
            seed=job.seed,
            progress=progress,
            after_step=partial(checkpoint_of_training, checkpoints, evaluated),
            correct=half.correction(start, adapter_parameters(model.module)),
            resumed=None if resumed is None else resumed.trained,
        )
        segments = training_segments(
            model.layout,
            local_adapter=read_adapter(model.module),
            global_adapter=state.adapter,
            trained=trained,
            evaluated=evaluated,
            counts=counts,
            initial=initial,
        )
        segments |= ALGORITHM_SEGMENTS[spec.aggregation.algorithm](start, read_adapter(model.module))
        outcome = half.finish(start, segments["adapter_update"])
        segments |= outcome.segments
        if outcome.private is not None:
            write_next_private_state(job_dir, outcome.private)
        metrics |= metrics_of_training(segments, trained, fits)
    write_file(job_dir / PAYLOAD_FILE, bytes_from_tensors(segments))

    return JobResult(
        records=len(dataset.records),
        patients=dataset.n_patients,
        held_out_records=evaluated.n_records,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(compute),
        device=compute.device_name,
        precision=compute.precision,
        versions=installed_versions(),
        sha256=dataset.sha256,
        metrics=metrics,
    )


def prepare_compute(job: JobSpec) -> Compute:
    """Choose device and precision, limit the threads, and make the arithmetic repeatable.

    Raises:
        DeviceUnavailableError: the job asks for a device that is not there.
    """
    compute = choose_compute(job.device)
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    # On a CPU every kernel used here is deterministic; a GPU warns of one that is not and goes on.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    return compute


def take_model(job: JobSpec, spec: RunSpec, *, shelf: ModelShelf, compute: Compute) -> LoadedTask:
    """The run's base model with its adapter on it; the digest is the run's, whatever the job says.

    Raises:
        JobFileInvalidError: job and run name different base models.
        BaseModelError, TargetModulesUnknownError: as ``ModelShelf.take``.
    """
    return shelf.take(folder_of_base(job, spec), spec, sha256=spec.base_model.sha256, compute=compute)


def receive_state(job_dir: Path, model: LoadedTask, spec: RunSpec) -> PublicState:
    """Read the public state that the round starts from, check it, and set the model's adapter to it.

    Raises:
        JobFileMissingError: there is none.
        AdapterLayoutMismatchError, InitialAdapterMismatchError: it is not what the run's specification gives.
        ProtocolError: it is not well formed.
    """
    verify_layout(model.layout, spec, AdapterLayout.from_document(read_document(job_dir / LAYOUT_FILE)))
    try:
        state = PublicState.from_bytes((job_dir / GLOBAL_FILE).read_bytes())
    except FileNotFoundError as error:
        raise JobFileMissingError("a file of the job directory is missing", file=GLOBAL_FILE) from error
    if state.version == 0:
        verify_initial_adapter(state, model.layout, spec)
    load_adapter(model.module, state.adapter, layout=model.layout)
    return state


def local_steps(spec: RunSpec, round_index: int) -> LocalSteps:
    """How one round of a run steps."""
    local = spec.local
    return LocalSteps(
        batch_size=local.batch_size,
        accumulation=local.accumulation,
        weight_decay=local.weight_decay,
        learning_rates=tuple(learning_rate_at(spec, round_index=round_index, step=step) for step in range(local.steps)),
        optimizer=local.optimizer,
    )


def train(
    task: LoadedTask,
    examples: Sequence[TaskExample],
    *,
    rule: LocalSteps,
    seed: int,
    progress: ProgressReporter,
    after_step: Callable[[StepDone], None] = lambda _: None,
    correct: Callable[[], None] = lambda: None,
    resumed: StepsState | None = None,
) -> TrainingSums:
    """Train the model's adapter in place by the run's local rule.

    Raises:
        LossNotFiniteError: training diverged.
        OutOfMemoryError: with the batch size that would fit, if there is one.
    """
    torch.manual_seed(seed)
    steps, first = len(rule.learning_rates), 0 if resumed is None else resumed.step
    progress.report(ProgressState.TRAINING, step=first, steps=steps, is_resumed=resumed is not None)

    def on_step(done: StepDone) -> None:
        # The checkpoint first: whoever reads of a step may count on what was due by then.
        after_step(done)
        n_records = (done.step - first) * rule.n_per_step
        progress.report(ProgressState.TRAINING, step=done.step, steps=steps, n_records=n_records, loss=done.loss)

    kind = AdapterKind(task.layout.kind)
    set_adapter_dropout(task.module, kind, is_on=True)
    try:
        return train_in_steps(
            adapter_parameters(task.module),
            examples,
            rule=rule,
            train_loss=task.train_loss,
            on_step=on_step,
            on_batch=progress.beat,
            correct=correct,
            resumed=resumed,
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        set_adapter_dropout(task.module, kind, is_on=False)
    # Here, where nothing holds the batch that did not fit any more.
    parameters = adapter_parameters(task.module).values()
    raise training_memory_error(task.train_loss, parameters, examples, batch_size=rule.batch_size)


def checkpoint_of_training(checkpoints: CheckpointStore, evaluated: EvaluationSums, done: StepDone) -> None:
    """Write how far training is, if it is time to."""
    checkpoints.offer(lambda: Checkpoint(evaluated=evaluated, is_evaluated=True, trained=done.capture()))


def metrics_of_training(segments: RawSegments, trained: TrainingSums, fits: FitCounts) -> dict[str, float]:
    """What this site may see of its own training."""
    update = segments["adapter_update"].astype("float64")
    return {
        "train_loss": trained.loss_sum / trained.n_tokens,
        "update_norm": math.sqrt(float(update @ update)),
        "train_cut": fits.cut,
        "train_left_out": fits.no_room,
    }
