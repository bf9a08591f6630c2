"""The checks of the machine: the trainer's libraries, GPU and driver, memory against the base models, disk.

What is judged of GPU and memory is what the trainer sees, for it may run in another container than the agent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fl_protocol.errors import ProtocolError
from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.approvals.run_records import STANDING, list_runs
from site_agent.db.tx import open_site_db
from site_agent.doctor.model_weights import count_weights
from site_agent.doctor.scene import Scene
from site_agent.doctor.trainer_sight import TrainerStanding
from site_agent.jobs.engine_runner import EngineRunner
from site_agent.jobs.machine_sight import MachineSight
from site_agent.runners import runner_of

FAMILY = "this machine"
_GB = 10**9
_LITTLE_DISK_BYTES = 5 * _GB
_NO_DISK_BYTES = _GB // 2

RUNNER_GOOD = Outcome(code="runner-good", health=Health.OK, means="Jobs can be run as runner says in site.yaml.")
RUNNER_BAD = Outcome(
    code="runner-error",
    health=Health.FAILED,
    means="The settings of the runner cannot be used, or ask for what is not safe: a root engine's own socket.",
    advice="As the sentence says; docs/operating/runners.md has the settings of each kind.",
)
ENGINE_UNAVAILABLE = Outcome(
    code="engine-unavailable",
    health=Health.FAILED,
    means="The container engine or the cluster does not answer, or does not let this agent in.",
    advice="As the sentence says: the engine, the rights on its socket, or the Role of the service account.",
)
IMAGE_MISMATCH = Outcome(
    code="image-mismatch",
    health=Health.FAILED,
    means="The trainer's image is not named by a digest, or the engine does not have it.",
    advice="Load the image, and name it by its digest in runner.image.",
)


def _runner(scene: Scene) -> Iterator[CheckResult]:
    kind = scene.settings().runner.kind
    runner = runner_of(scene.settings())
    if not isinstance(runner, EngineRunner):
        yield found("runner", RUNNER_GOOD, f"kind {kind}", runner=kind)
        return
    try:
        yield found("runner", RUNNER_GOOD, f"kind {kind}: {runner.look()}", runner=kind)
    finally:
        asyncio.run(runner.stop())


TRAINER_GOOD = Outcome(code="trainer-good", health=Health.OK, means="The trainer answers and has its libraries.")
TRAINER_SILENT = Outcome(
    code="trainer-silent",
    health=Health.FAILED,
    means="The trainer says nothing of itself.",
    advice=(
        "With runner.kind process: install wardround[training] beside the agent. Otherwise: see that the trainer's "
        "container runs and shares the jobs folder with the agent, and read its log."
    ),
)
TRAINER_UNTOLD = Outcome(
    code="trainer-untold",
    health=Health.NOTE,
    means=(
        "The trainer lives, and has not said yet what it sees: it does so within a minute of its start; where each job "
        "has a container of its own, not at all."
    ),
)
TRAINER_UNCHOSEN = Outcome(
    code="trainer-unchosen",
    health=Health.NOTE,
    means="There is no site.yaml yet, and no trainer is installed beside the agent.",
    advice="Choose runner.kind (docs/operating/runners.md): spool where the trainer has a container of its own.",
)
TRAINER_INCOMPLETE = Outcome(
    code="trainer-incomplete",
    health=Health.FAILED,
    means="Libraries that training needs are not installed.",
    advice="Install wardround[training] where the trainer runs, or use the trainer's image.",
)


def _trainer(scene: Scene) -> Iterator[CheckResult]:
    kind = scene.settings().runner.kind
    result = judge_trainer(scene.trainer(), runner=kind)
    if kind == "process" and not scene.has_settings and result.health is Health.FAILED:
        # Nobody has chosen a runner yet, and the agent's own image has no trainer.
        message = "no trainer beside the agent; which runner is used, site.yaml says after enrolment"
        result = found("trainer", TRAINER_UNCHOSEN, message)
    yield result


def judge_trainer(standing: TrainerStanding, *, runner: str) -> CheckResult:
    """Whether there is a trainer that could train."""
    sight = standing.sight
    if not standing.is_alive:
        return found("trainer", TRAINER_SILENT, f"the trainer (runner {runner}) says nothing of itself", runner=runner)
    if sight is None:
        return found(
            "trainer", TRAINER_UNTOLD, f"runner {runner}: the trainer has not said what it sees", runner=runner
        )
    if sight.missing:
        return found("trainer", TRAINER_INCOMPLETE, f"not installed: {', '.join(sight.missing)}", runner=runner)
    message = f"runner {runner}; torch {sight.torch}, computes in {sight.precision}"
    return found("trainer", TRAINER_GOOD, message, runner=runner, torch=sight.torch, precision=sight.precision)


GPU_SEEN = Outcome(code="gpu-seen", health=Health.OK, means="The trainer may use a GPU.")
GPU_NONE = Outcome(
    code="gpu-none", health=Health.NOTE, means="There is no GPU and none was asked for; training uses the processor."
)
GPU_UNUSED = Outcome(
    code="gpu-unused", health=Health.NOTE, means="There is a GPU, and runner.device says that the processor is used."
)
GPU_DRIVER_MISSING = Outcome(
    code="gpu-driver-missing",
    health=Health.FAILED,
    means="runner.device asks for a GPU, and NVIDIA's driver is not loaded.",
    advice=(
        "Install NVIDIA's driver on the host and reboot ('nvidia-smi' must list the GPU there); or set runner.device "
        "to auto or cpu."
    ),
)
GPU_NOT_PASSED = Outcome(
    code="gpu-not-passed",
    health=Health.WARNING,
    means="The host's driver is loaded, and the trainer's container was given no GPU.",
    advice=(
        "Install NVIDIA's container toolkit on the host ('nvidia-ctk runtime configure --runtime=docker', then restart "
        "the engine), and give the trainer the device: deploy.resources.reservations.devices in compose, "
        "nvidia.com/gpu in Kubernetes."
    ),
)
GPU_TORCH_CPU = Outcome(
    code="gpu-torch-cpu",
    health=Health.WARNING,
    means="There is a GPU, and the trainer's torch was built without CUDA.",
    advice="Use the trainer's image with the tag -cuda, or install torch's CUDA build where the trainer runs.",
)
GPU_UNUSABLE = Outcome(
    code="gpu-unusable",
    health=Health.WARNING,
    means="Driver, device and CUDA build are there, and torch cannot use them.",
    advice=(
        "Run 'nvidia-smi' on the host. 'Driver/library version mismatch': reboot. A CUDA version there below the one "
        "that torch was built for: renew the driver. A process that holds the GPU in exclusive mode: end it. "
        "CUDA_VISIBLE_DEVICES must not be empty."
    ),
)


def _gpu(scene: Scene) -> Iterator[CheckResult]:
    sight = scene.sight()
    if sight is not None and not sight.missing:
        yield judge_gpu(sight, device=scene.settings().runner.device)


def judge_gpu(sight: MachineSight, *, device: Literal["auto", "cpu", "cuda"]) -> CheckResult:
    """What the trainer sees of a GPU, against what the settings ask for."""
    if sight.gpus:
        names = ", ".join(f"{gpu.name} ({gpu.memory_bytes / _GB:.0f} GB)" for gpu in sight.gpus)
        if device == "cpu":
            return found("gpu", GPU_UNUSED, f"{names}, not used: runner.device is cpu")
        message = f"{names}; driver {sight.driver or 'unknown'}, CUDA {sight.cuda_build}, computes in {sight.precision}"
        return found("gpu", GPU_SEEN, message, n_gpus=len(sight.gpus))
    if device == "cpu" or (device == "auto" and sight.driver is None and not sight.has_device_nodes):
        return found("gpu", GPU_NONE, "no GPU; training uses the processor")
    outcome, message = _why_no_gpu(sight)
    result = found("gpu", outcome, message)
    if device == "cuda" and result.health is Health.WARNING:
        return CheckResult(
            name=result.name, code=result.code, health=Health.FAILED, message=message, advice=result.advice
        )
    return result


def _why_no_gpu(sight: MachineSight) -> tuple[Outcome, str]:
    if sight.driver is None and not sight.has_device_nodes:
        return GPU_DRIVER_MISSING, "runner.device is cuda, and no NVIDIA driver is loaded where the trainer runs"
    if not sight.has_device_nodes:
        return GPU_NOT_PASSED, f"driver {sight.driver} is loaded, and the trainer has no /dev/nvidia0"
    if sight.cuda_build is None:
        return GPU_TORCH_CPU, f"a GPU is there, and torch {sight.torch} is a build for the processor"
    return GPU_UNUSABLE, f"torch {sight.torch} (CUDA {sight.cuda_build}) cannot use the GPU; driver {sight.driver}"


# The rule of docs/operating/doctor.md: weights in the precision that is computed in, a quarter more for activations
# and the adapter's optimiser, and what torch and its libraries take before any model.
WEIGHTS_FACTOR = 1.25
PROCESS_BYTES = 1_500_000_000
_WIDTH = {"float32": 4, "bfloat16": 2}

MEMORY_ENOUGH = Outcome(code="memory-enough", health=Health.OK, means="Every base model fits, by the rule below.")
MEMORY_TIGHT = Outcome(
    code="memory-tight",
    health=Health.WARNING,
    means="A base model fits into the memory that there is, and not into what is free now.",
    advice="End what else uses the memory of the trainer's machine while it trains, or give its container more.",
)
MEMORY_SHORT = Outcome(
    code="memory-short",
    health=Health.FAILED,
    means="A base model does not fit, by the rule below.",
    advice=(
        "Give the trainer's machine or container more memory; or take part in runs on a smaller base model, or with "
        "base_model.quantization (needs a GPU)."
    ),
)
MEMORY_UNKNOWN = Outcome(
    code="memory-unknown",
    health=Health.NOTE,
    means="The base model's weights, or the trainer's memory, cannot be seen from here.",
)


def memory_needed(n_weights: int, *, precision: str) -> int:
    """Bytes that training an adapter on a base model of so many weights takes, by the rule."""
    return int(n_weights * _WIDTH.get(precision, 4) * WEIGHTS_FACTOR) + PROCESS_BYTES


def _memory(scene: Scene) -> Iterator[CheckResult]:
    sight, settings = scene.sight(), scene.settings()
    for name in settings.base_models:
        path = settings.base_model_path(name)
        n_weights = None if path is None else count_weights(path)
        if sight is None or sight.missing or n_weights is None:
            message = f"{name}: weights or memory are not seen from here; the trainer tells when it loads it"
            yield found("memory", MEMORY_UNKNOWN, message, base_model=name)
        else:
            yield judge_memory(name, n_weights, sight, uses_gpu=bool(sight.gpus) and settings.runner.device != "cpu")


def judge_memory(base_model: str, n_weights: int, sight: MachineSight, *, uses_gpu: bool) -> CheckResult:
    """Whether a base model fits where the trainer computes."""
    needed = memory_needed(n_weights, precision=sight.precision)
    total = max(gpu.memory_bytes for gpu in sight.gpus) if uses_gpu else sight.memory_bytes
    where = "on the GPU" if uses_gpu else "where the trainer runs"
    message = (
        f"{base_model}: {n_weights / 1e6:.0f}M weights in {sight.precision} need about {needed / _GB:.1f} GB; "
        f"{total / _GB:.1f} GB {where}"
    )
    outcome = MEMORY_SHORT if needed > total else MEMORY_ENOUGH
    if outcome is MEMORY_ENOUGH and not uses_gpu and needed > sight.available_bytes:
        outcome, message = MEMORY_TIGHT, f"{message}, {sight.available_bytes / _GB:.1f} GB free now"
    return found("memory", outcome, message, base_model=base_model, needed_bytes=needed, memory_bytes=total)


# Two public states of 4 bytes a weight with their moments, a masked payload of 8, what a job folder holds, and as much
# again for what is written beside before it replaces the last.
DISK_BYTES_A_WEIGHT = 40

DISK_ENOUGH = Outcome(code="disk-enough", health=Health.OK, means="There is room for what rounds write.")
DISK_LITTLE = Outcome(
    code="disk-little",
    health=Health.WARNING,
    means="Less than 5 GB are free.",
    advice="A large adapter may need more: make room, or let the state folder lie on a larger disk.",
)
DISK_FULL = Outcome(
    code="disk-full",
    health=Health.FAILED,
    means="Less than 0.5 GB, or less than the runs in hand need, are free.",
    advice="Make room: training writes adapters, masked uploads and checkpoints to this folder.",
)
FOLDER_UNUSABLE = Outcome(
    code="folder-unusable",
    health=Health.FAILED,
    means="The file system of the state folder cannot be asked.",
    advice="See that the state folder's disk is mounted and that this user may enter it.",
)


def _disk(scene: Scene) -> Iterator[CheckResult]:
    needed = max(_NO_DISK_BYTES, _needed_by_runs(scene))
    places = {"state folder": scene.folder.root, "jobs folder": scene.settings().jobs_dir}
    seen: set[int] = set()
    for label, path in places.items():
        try:
            device = _nearest(path).stat().st_dev
            if device in seen:
                continue
            seen.add(device)
            yield judge_disk(label, scene.free_bytes(path), needed=needed)
        except OSError as error:
            yield found("disk", FOLDER_UNUSABLE, f"{label}: {error.strerror}")


def judge_disk(label: str, free: int, *, needed: int) -> CheckResult:
    """Whether there is room for the runs in hand."""
    message = f"{label}: {free / _GB:.1f} GB free, {needed / _GB:.1f} GB needed"
    enough = DISK_LITTLE if free < _LITTLE_DISK_BYTES else DISK_ENOUGH
    outcome = DISK_FULL if free < needed else enough
    return found("disk", outcome, message, free_bytes=free, needed_bytes=needed)


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _needed_by_runs(scene: Scene) -> int:
    if not scene.is_enrolled or not scene.folder.database.exists():
        return 0
    db = open_site_db(scene.folder.database)
    try:
        runs = db.run_read("list_runs", list_runs)
    finally:
        db.close()
    return sum(_weights_of(record.run.layout_json) for record in runs if record.state in STANDING) * DISK_BYTES_A_WEIGHT


def _weights_of(layout_json: bytes) -> int:
    try:
        return AdapterLayout.from_document(json.loads(layout_json)).n_parameters
    except (ProtocolError, ValueError):
        # A run whose layout cannot be read trains nothing.
        return 0


CHECKS = (
    Check(
        name="runner",
        family=FAMILY,
        looks_at="the settings of the runner; the engine's socket and the image, or the rights in the cluster",
        outcomes=(RUNNER_GOOD, RUNNER_BAD, ENGINE_UNAVAILABLE, IMAGE_MISMATCH),
        run=_runner,
    ),
    Check(
        name="trainer",
        family=FAMILY,
        looks_at="whether there is a trainer, started by the agent or another container, with its libraries",
        outcomes=(TRAINER_GOOD, TRAINER_SILENT, TRAINER_UNTOLD, TRAINER_UNCHOSEN, TRAINER_INCOMPLETE),
        run=_trainer,
    ),
    Check(
        name="gpu",
        family=FAMILY,
        looks_at="what the trainer sees of GPU, driver and CUDA, against runner.device",
        outcomes=(
            GPU_SEEN,
            GPU_NONE,
            GPU_UNUSED,
            GPU_DRIVER_MISSING,
            GPU_NOT_PASSED,
            GPU_TORCH_CPU,
            GPU_UNUSABLE,
        ),
        run=_gpu,
    ),
    Check(
        name="memory",
        family=FAMILY,
        looks_at="the trainer's memory, or its GPU's, against each base model of site.yaml",
        outcomes=(MEMORY_ENOUGH, MEMORY_TIGHT, MEMORY_SHORT, MEMORY_UNKNOWN),
        run=_memory,
    ),
    Check(
        name="disk",
        family=FAMILY,
        looks_at="room in the state folder and the jobs folder, against the runs in hand",
        outcomes=(DISK_ENOUGH, DISK_LITTLE, DISK_FULL, FOLDER_UNUSABLE),
        run=_disk,
    ),
)
