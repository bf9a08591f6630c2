"""What a trainer's container is given: little, and named here once. Pure; the ``docker`` runner says it to an engine.

Safety: the container is taken for an attacker's from its first instruction. It has no network, no capability, no
writable place but its run's folder and a bounded ``/tmp``, and a bound on memory and processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from site_agent.errors import ImageMismatchError, RunnerError
from site_agent.jobs.job_dir import JobSpec
from site_agent.jobs.spool_files import INSPECTIONS_FOLDER, JobNames

JOBS_IN_CONTAINER = PurePosixPath("/srv/wardround/jobs")
"""Where the jobs folder lies in the trainer's image."""

LABEL_JOBS = "org.wardround.jobs"
LABEL_JOB = "org.wardround.job"

_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_BY_DIGEST = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]{0,254}@sha256:[0-9a-f]{64}")
_IMAGE_ADVICE = (
    "Write runner.image as NAME@sha256:DIGEST, or as the image's id: 'docker image inspect --format {{.Id}} NAME' "
    "prints it for an image that was loaded from a bundle."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnlyMount:
    """A folder of data or base models, as the engine's machine calls it, and where the trainer finds it."""

    source: str
    target: str

    def __post_init__(self) -> None:
        """Refuse what would hide or widen something else.

        Raises:
            RunnerError: a path is not absolute, goes through '..', or lies over the program or the jobs.
        """
        for path in (self.source, self.target):
            if not path.startswith("/") or ".." in PurePosixPath(path).parts or path == "/":
                message = "a mount of runner.mounts is not an absolute path below the root"
                raise RunnerError(message, advice="Write absolute paths without '..'.", path=path[:80])
        if PurePosixPath(self.source).name.endswith(".sock"):
            message = "a mount of runner.mounts is a socket: a trainer that speaks to an engine owns the machine"
            raise RunnerError(message, advice="Take it out of runner.mounts.", path=self.source[:80])
        if _covers(self.target, str(JOBS_IN_CONTAINER)) or _covers(self.target, "/opt/wardround"):
            message = "a mount of runner.mounts lies over the trainer's program or its jobs"
            raise RunnerError(message, advice="Use /data and /models.", path=self.target[:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLimits:
    """The bounds of a container.

    Attributes:
        memory_bytes: of all its processes and its ``/tmp`` together; there is no swap beside it.
        n_processes: processes and threads.
        tmp_bytes: of ``/tmp``, which is memory; and of what processes share, which is as well.
        gpus: how many it is given; -1 for all.
    """

    memory_bytes: int = 16 << 30
    n_processes: int = 1024
    tmp_bytes: int = 1 << 30
    gpus: int = 0


def check_image_name(image: str) -> str:
    """An image that is named by what it is, not by what somebody called it.

    Raises:
        ImageMismatchError: it is named by a tag, or not at all.
    """
    if _IMAGE_ID.fullmatch(image) or _BY_DIGEST.fullmatch(image):
        return image
    message = "runner.image does not name the trainer's image by digest; a tag can be moved to another image"
    raise ImageMismatchError(message, advice=_IMAGE_ADVICE, image=image[:100])


def check_image_found(image: str, *, image_id: str, repo_digests: tuple[str, ...]) -> None:
    """Compare what an engine found with what was named.

    Raises:
        ImageMismatchError: it is another image.
    """
    digest = image.rpartition("@")[2]
    found = {image_id} if "@" not in image else {text.rpartition("@")[2] for text in repo_digests}
    if digest not in found:
        message = "the engine's image is not the one that runner.image names"
        raise ImageMismatchError(message, advice=_IMAGE_ADVICE, named=digest[:80], found=image_id[:80])


def check_image_of_run(image: str, job: JobSpec) -> None:
    """Compare the image that this site trains with, with the one that the run names, if it names one.

    Raises:
        ImageMismatchError: the run was approved for another image.
    """
    trainer = (job.run_spec or {}).get("trainer")
    named = trainer.get("image_sha256") if isinstance(trainer, Mapping) else None
    digest = image.rpartition("sha256:")[2]
    if isinstance(named, str) and named.removeprefix("sha256:") != digest:
        message = "the run was approved for another trainer image than runner.image"
        advice = "Load the image that the run names ('wardround-site runs show RUN' prints it) and write its digest."
        raise ImageMismatchError(message, advice=advice, named=named[:80], configured=digest)


def work_below(names: JobNames) -> PurePosixPath:
    """What of the jobs folder a job's container is given: its run's folder.

    A dataset that is looked at has no run: its own folder is all.
    """
    run, name = names
    return PurePosixPath(run, name) if run == INSPECTIONS_FOLDER else PurePosixPath(run)


def words_of(names: JobNames, more: tuple[str, ...]) -> tuple[str, ...]:
    """The command line, after the program, of a trainer that does one job."""
    return ("run", str(JOBS_IN_CONTAINER.joinpath(*names)), *more)


def thread_environment(threads: int | None) -> dict[str, str]:
    """What bounds the threads of the numeric libraries; nothing where it is left to them."""
    return {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """One container for one job.

    Attributes:
        image_id: what was found to be the image that ``runner.image`` names.
        words: the command line, after the program.
        work_source: the folder, as the engine's machine calls it, that is mounted for writing.
        work_target: where it is mounted.
    """

    image_id: str
    words: tuple[str, ...]
    work_source: str
    work_target: str
    mounts: tuple[ReadOnlyMount, ...]
    limits: ContainerLimits
    user: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...] | None = None
    runtime: str | None = None

    def to_create_arguments(self) -> dict[str, object]:
        """The arguments of the SDK's ``containers.create``, but for device requests, which are a class of its own."""
        volumes = {mount.source: {"bind": mount.target, "mode": "ro"} for mount in self.mounts}
        volumes[self.work_source] = {"bind": self.work_target, "mode": "rw"}
        arguments: dict[str, object] = {
            "image": self.image_id,
            "command": list(self.words),
            "detach": True,
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "privileged": False,
            "ipc_mode": "private",
            "user": self.user,
            "volumes": volumes,
            "tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,size={self.limits.tmp_bytes}"},  # noqa: S108 - in the container
            "shm_size": self.limits.tmp_bytes,
            "mem_limit": self.limits.memory_bytes,
            "memswap_limit": self.limits.memory_bytes,
            "pids_limit": self.limits.n_processes,
            "labels": dict(self.labels),
            "environment": dict(self.environment),
            # A health check of the image asks for the heartbeat of a trainer that serves spools; this one does one job.
            "healthcheck": {"test": ["NONE"]},
        }
        if self.entrypoint is not None:
            arguments["entrypoint"] = list(self.entrypoint)
        if self.runtime is not None:
            arguments["runtime"] = self.runtime
        return arguments


GpuMatch = Literal["no driver", "no runtime"]

_GPU_ERRORS: Mapping[str, GpuMatch] = {
    "could not select device driver": "no driver",
    "unknown or invalid runtime name: nvidia": "no runtime",
}

GPU_ADVICE: Mapping[GpuMatch, str] = {
    "no driver": (
        "The engine knows no GPU: install the NVIDIA driver and the NVIDIA Container Toolkit on its machine, run "
        "'nvidia-ctk runtime configure --runtime=docker' and start the engine again; or set runner.gpus to 0 and "
        "runner.device to cpu."
    ),
    "no runtime": (
        "The engine has no runtime called nvidia: run 'nvidia-ctk runtime configure --runtime=docker' and start the "
        "engine again, or leave runner.runtime out where the engine gives GPUs by device requests (CDI)."
    ),
}


def gpu_error_of(explanation: str) -> GpuMatch | None:
    """Which of an engine's errors about GPUs this is, if one."""
    return next((match for words, match in _GPU_ERRORS.items() if words in explanation), None)


def _covers(target: str, place: str) -> bool:
    one, other = PurePosixPath(target), PurePosixPath(place)
    return one == other or one in other.parents or other in one.parents
