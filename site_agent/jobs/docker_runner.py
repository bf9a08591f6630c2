"""The ``docker`` runner: one container for each job, on an engine that the agent may ask for one.

Whoever may ask a root engine for containers owns its machine, so the agent takes a rootless engine, or a proxy before a
socket that lets through little; a root engine's own socket only where ``site.yaml`` says so in words.

The container of a job mounts its run's folder and nothing else for writing. It ends with its job; one that dies before
is followed by another, which goes on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import structlog

from site_agent.errors import (
    EngineUnavailableError,
    GpuUnavailableError,
    ImageMismatchError,
    JobTimedOutError,
    RunnerError,
)
from site_agent.jobs.container_plan import (
    GPU_ADVICE,
    JOBS_IN_CONTAINER,
    LABEL_JOB,
    LABEL_JOBS,
    ContainerLimits,
    ContainerPlan,
    ReadOnlyMount,
    check_image_found,
    check_image_name,
    check_image_of_run,
    gpu_error_of,
)
from site_agent.jobs.documents import write_file
from site_agent.jobs.held_folder import JobsFolderUnsafeError, held_folder, unsafe_errors
from site_agent.jobs.job_dir import JobFailure, JobResult, JobSpec, read_result, write_job
from site_agent.jobs.lives import LOG_FILE, EndCause, Lives, ProgressFollower, TrainerEnd
from site_agent.jobs.runner import ProgressListener, succeeded
from site_agent.jobs.spool import names_of
from site_agent.jobs.spool_files import INSPECTIONS_FOLDER

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.25
_LOG_LINES = 400
_MOST_LOGGED = "8m"
_MAX_LOG_BYTES = 256 << 10
_ENGINE_ADVICE = (
    "Check that the engine runs and that this agent's user may open runner.engine; a proxy before the socket must let "
    "through: images (inspect), containers (create, inspect, start, logs, list, remove)."
)
_ROOT_ADVICE = (
    "Whoever may ask a root engine for containers owns its machine. Use a rootless engine "
    "(unix:///run/user/UID/docker.sock) or a socket proxy that refuses /info and all that a trainer does not need; or "
    "use runner.kind: spool, which needs no engine at all. Only if this machine is the trainer's alone, write "
    "runner.allow_root_socket: true."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerRunnerOptions:
    """How containers are asked for.

    Attributes:
        jobs_dir: the jobs folder, as this agent sees it.
        jobs_source: the same folder, as the engine's machine calls it.
        engine: the engine's address.
        image: by digest, or by image id.
        is_root_engine_allowed: whether an engine that is not rootless may be used directly.
        user: whom the trainer runs as in its container; it must be able to write the jobs folder.
        words: after the job's folder.
        entrypoint: the trainer's program; None for the image's.
    """

    jobs_dir: Path
    jobs_source: str
    engine: str
    image: str
    is_root_engine_allowed: bool = False
    mounts: tuple[ReadOnlyMount, ...] = ()
    limits: ContainerLimits = field(default_factory=ContainerLimits)
    user: str = "10001:10001"
    words: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    runtime: str | None = None
    n_lives_in_vain: int = 3
    restart_wait_s: float = 1.0
    idle_timeout_s: float = 1800.0

    @property
    def label(self) -> str:
        """Names the jobs folder to other agents on the same engine without telling where it lies."""
        return hashlib.sha256(self.jobs_source.encode()).hexdigest()[:16]


class DockerRunner:
    """Runs each job in a container of its own. Invariant: no container outlives the call that asked for it."""

    def __init__(self, options: DockerRunnerOptions) -> None:
        """Nothing is asked of the engine before the first job.

        Raises:
            ImageMismatchError: the image is not named by digest.
        """
        check_image_name(options.image)
        self._options = options
        self._client: docker.DockerClient | None = None
        self._locks: dict[str, asyncio.Lock] = {}

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """See ``JobRunner``."""
        names = names_of(self._options.jobs_dir, job_dir)
        async with self._locks.setdefault(names[0], asyncio.Lock()):
            with unsafe_errors(), held_folder(self._options.jobs_dir, *names) as held:
                try:
                    async with asyncio.timeout(job.timeout_s):
                        result = await self._run(held, names, job, on_progress)
                except TimeoutError as error:
                    message = "the job did not end in its time; raise runner.timeout_s, or ask for fewer steps"
                    raise JobTimedOutError(message, job_id=job.job_id, timeout_s=job.timeout_s) from error
        return succeeded(result, job)

    async def end_orphans(self) -> None:
        """See ``JobRunner``: containers of rounds that carry this jobs folder's label are removed."""
        try:
            await asyncio.to_thread(self._remove_orphans)
        except RunnerError as error:
            # The agent has more to do than to train; the next job says it again.
            log.warning("engine_not_asked", code=error.code, cause=error.message)

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``: no container is kept for a run."""

    async def stop(self) -> None:
        """See ``JobRunner``."""
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    async def _run(
        self, job_dir: Path, names: tuple[str, str], job: JobSpec, on_progress: ProgressListener
    ) -> JobResult | JobFailure:
        await asyncio.to_thread(write_job, job_dir, job)
        closed = await asyncio.to_thread(read_result, job_dir)
        if closed is not None:
            return closed
        follower = ProgressFollower(job_dir, on_progress)
        lives = Lives(follower, job.job_id, n_in_vain_allowed=self._options.n_lives_in_vain)
        while True:
            end = await self._live(names, job, follower)
            if not isinstance(end, TrainerEnd):
                return end
            lives.note(end)
            await asyncio.sleep(lives.wait_s(self._options.restart_wait_s))

    async def _live(
        self, names: tuple[str, str], job: JobSpec, follower: ProgressFollower
    ) -> JobResult | JobFailure | TrainerEnd:
        """One container, from its start to its removal, whatever happens in between."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, names, job))
        try:
            container = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on; what it makes must not stay.
            with suppress(RunnerError):
                await asyncio.to_thread(self._remove, await starting, names)
            raise
        try:
            return await self._wait_for_end(container, follower)
        finally:
            await asyncio.to_thread(self._remove, container, names)

    async def _wait_for_end(
        self, container: Container, follower: ProgressFollower
    ) -> JobResult | JobFailure | TrainerEnd:
        now = asyncio.get_running_loop().time
        alive_at = now()
        while True:
            state = await asyncio.to_thread(_state_of, container)
            if await follower.look():
                alive_at = now()
            if state.exit_code is not None:
                # Only now: what it says last, it says before it ends.
                await follower.look()
                result = await asyncio.to_thread(read_result, follower.job_dir)
                return result if result is not None else _end_of(state)
            if now() - alive_at > self._options.idle_timeout_s:
                return TrainerEnd(cause=EndCause.HUNG)
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> str:
        """Ask the engine for the image, and start nothing; what was found, in words. Blocks on the engine.

        Raises:
            RunnerError: the engine is root's own, is not there or refuses, or has another image.
        """
        with _engine_errors():
            image_id = self._find_image(self._engine())
        return f"the engine has the image {image_id[:19]}"

    def _start(self, names: tuple[str, str], job: JobSpec) -> Container:
        """Ask for the container and start it. Blocks on the engine."""
        with _engine_errors():
            client = self._engine()
            plan = self._plan(client, names, job)
            from docker.types import DeviceRequest, LogConfig

            arguments = plan.to_create_arguments()
            # What it prints is bounded as well: a trainer that is taken over may fill the engine's disk else.
            arguments["log_config"] = LogConfig(type="json-file", config={"max-size": _MOST_LOGGED, "max-file": "1"})
            if plan.limits.gpus:
                arguments["device_requests"] = [DeviceRequest(count=plan.limits.gpus, capabilities=[["gpu"]])]
            container = client.containers.create(name=f"wardround-job-{secrets.token_hex(6)}", **arguments)
        try:
            with _engine_errors():
                container.reload()
                # By id it cannot be another; asked all the same, since this is what was approved.
                check_image_found(plan.image_id, image_id=str(container.attrs["Image"]), repo_digests=())
                container.start()
        except BaseException:
            self._remove(container, names)
            raise
        return container

    def _plan(self, client: docker.DockerClient, names: tuple[str, str], job: JobSpec) -> ContainerPlan:
        options, (run, name) = self._options, names
        check_image_of_run(options.image, job)
        # A dataset that is looked at has no run: its own folder is all that is mounted.
        below = PurePosixPath(run, name) if run == INSPECTIONS_FOLDER else PurePosixPath(run)
        threads = {} if job.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(job.threads))
        return ContainerPlan(
            image_id=self._find_image(client),
            words=("run", str(JOBS_IN_CONTAINER / run / name), *options.words),
            work_source=str(PurePosixPath(options.jobs_source) / below),
            work_target=str(JOBS_IN_CONTAINER / below),
            mounts=options.mounts,
            limits=options.limits,
            user=options.user,
            labels={LABEL_JOBS: self._options.label, LABEL_JOB: f"{run}/{name}"},
            environment=threads,
            entrypoint=options.entrypoint,
            runtime=options.runtime,
        )

    def _find_image(self, client: docker.DockerClient) -> str:
        from docker.errors import ImageNotFound

        try:
            image = client.images.get(self._options.image)
        except ImageNotFound as error:
            advice = (
                "Load it ('docker load -i wardround-trainer.tar', or 'docker pull' where there is a registry), and "
                "compare: 'docker images --digests --no-trunc'."
            )
            raise ImageMismatchError(
                "the engine has no image with the digest of runner.image", advice=advice
            ) from error
        image_id = str(image.id)
        digests = tuple(str(text) for text in image.attrs.get("RepoDigests") or ())
        check_image_found(self._options.image, image_id=image_id, repo_digests=digests)
        return image_id

    def _engine(self) -> docker.DockerClient:
        if self._client is not None:
            return self._client
        import docker

        _try_socket(self._options.engine)
        client = docker.DockerClient(base_url=self._options.engine, timeout=30)
        try:
            self._refuse_root(client)
        except BaseException:
            client.close()
            raise
        self._client = client
        return client

    def _refuse_root(self, client: docker.DockerClient) -> None:
        """Refuse an engine of root that answers everything; a proxy that lets little through refuses this question.

        Raises:
            RunnerError: it is one, and ``site.yaml`` does not say that it may be.
        """
        from docker.errors import APIError

        if self._options.is_root_engine_allowed:
            return
        try:
            said = client.info().get("SecurityOptions") or []
        except APIError as error:
            if error.status_code in {401, 403, 404, 405, 501}:
                return
            raise
        if not any("name=rootless" in str(text) for text in said):
            raise RunnerError("runner.engine is a root engine's own socket", advice=_ROOT_ADVICE)

    def _remove(self, container: Container, names: tuple[str, str]) -> None:
        """Kill and remove a container, and keep what it said last in the run's log; only once it is gone, return."""
        from docker.errors import DockerException, NotFound
        from requests.exceptions import RequestException

        with _engine_errors(), suppress(NotFound):
            # A log that cannot be had keeps nothing from being removed.
            with suppress(DockerException, RequestException):
                self._keep_log(container, names[0])
            container.remove(force=True)

    def _keep_log(self, container: Container, run: str) -> None:
        said = container.logs(tail=_LOG_LINES)[-_MAX_LOG_BYTES:]
        with suppress(OSError, JobsFolderUnsafeError), held_folder(self._options.jobs_dir, run) as spool:
            write_file(spool / LOG_FILE, bytes(said))

    def _remove_orphans(self) -> None:
        from docker.errors import NotFound

        with _engine_errors():
            found = self._engine().containers.list(all=True, filters={"label": f"{LABEL_JOBS}={self._options.label}"})
            for container in found:
                # A dataset that a command has looked at meanwhile is that command's.
                if container.labels.get(LABEL_JOB, "").startswith("run-"):
                    log.warning("orphan_removed", job=container.labels[LABEL_JOB])
                    with suppress(NotFound):
                        container.remove(force=True)


def _try_socket(engine: str) -> None:
    """Open a Unix socket once, so that what is wrong with it is told in the system's own words.

    Raises:
        OSError: it cannot be opened.
    """
    if engine.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as tried:
            tried.connect(engine.removeprefix("unix://"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    exit_code: int | None
    is_out_of_memory: bool = False


def _state_of(container: Container) -> _State:
    with _engine_errors():
        container.reload()
        state = container.attrs["State"]
    if state.get("Status") not in {"exited", "dead"}:
        return _State(exit_code=None)
    return _State(exit_code=int(state["ExitCode"]), is_out_of_memory=bool(state.get("OOMKilled")))


def _end_of(state: _State) -> TrainerEnd:
    return TrainerEnd(cause=EndCause.EXITED, exit_code=state.exit_code, is_out_of_memory=state.is_out_of_memory)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Translate the engine's errors.

    Raises:
        GpuUnavailableError: there is no GPU that it can give.
        EngineUnavailableError: it does not answer, or refuses.
        RunnerError: the SDK is not installed.
    """
    try:
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException
    except ImportError as error:
        advice = "Install wardround[docker-runner], or use runner.kind: spool."
        raise RunnerError("the Docker SDK is not installed", advice=advice) from error
    try:
        yield
    except APIError as error:
        match = gpu_error_of(str(error.explanation))
        if match is not None:
            raise GpuUnavailableError("the engine cannot give a container a GPU", advice=GPU_ADVICE[match]) from error
        message = "the engine refused"
        reason = " ".join(str(error.explanation).split())[:300]
        raise EngineUnavailableError(message, advice=_ENGINE_ADVICE, status=error.status_code, reason=reason) from error
    except (DockerException, RequestException, OSError) as error:
        message = "the engine does not answer"
        raise EngineUnavailableError(message, advice=_ENGINE_ADVICE, reason=type(error).__name__) from error
