"""The ``docker`` runner: one container for each job, on an engine that the agent may ask for one.

Whoever may ask a root engine for containers owns its machine, so the agent takes a rootless engine, or a proxy before a
socket that lets through little; a root engine's own socket only where ``site.yaml`` says so in words.

The container of a job mounts its run's folder and nothing else for writing.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import structlog

from site_agent.errors import EngineUnavailableError, GpuUnavailableError, ImageMismatchError, RunnerError
from site_agent.jobs.container_plan import (
    GPU_ADVICE,
    JOBS_IN_CONTAINER,
    LABEL_JOB,
    LABEL_JOBS,
    ContainerPlan,
    ReadOnlyMount,
    check_image_found,
    check_image_name,
    check_image_of_run,
    gpu_error_of,
    thread_environment,
    words_of,
    work_below,
)
from site_agent.jobs.documents import write_file
from site_agent.jobs.engine_runner import EngineRunner, EngineRunnerOptions, Standing
from site_agent.jobs.held_folder import JobsFolderUnsafeError, held_folder
from site_agent.jobs.job_dir import JobSpec
from site_agent.jobs.lives import LOG_FILE, EndCause, TrainerEnd
from site_agent.jobs.spool_files import JobNames, is_of_a_round

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

log = structlog.get_logger(__name__)

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
class DockerRunnerOptions(EngineRunnerOptions):
    """How containers are asked for.

    Attributes:
        jobs_source: the jobs folder, as the engine's machine calls it.
        engine: the engine's address.
        is_root_engine_allowed: whether an engine that is not rootless may be used directly.
        user: whom the trainer runs as in its container; it must be able to write the jobs folder.
        entrypoint: the trainer's program; None for the image's.
    """

    jobs_source: str
    engine: str
    is_root_engine_allowed: bool = False
    mounts: tuple[ReadOnlyMount, ...] = ()
    user: str = "10001:10001"
    entrypoint: tuple[str, ...] | None = None
    runtime: str | None = None
    look_every_s: float = 0.25

    @property
    def label(self) -> str:
        """Names the jobs folder to other agents on the same engine without telling where it lies."""
        return hashlib.sha256(self.jobs_source.encode()).hexdigest()[:16]


class DockerRunner(EngineRunner["Container"]):
    """Runs each job in containers of a Docker engine."""

    def __init__(self, options: DockerRunnerOptions) -> None:
        """Nothing is asked of the engine before the first job.

        Raises:
            ImageMismatchError: the image is not named by digest.
        """
        check_image_name(options.image)
        super().__init__(DockerEngine(options), options)


class DockerEngine:
    """A Docker engine, as a ``ContainerEngine``. Invariant: by what it is given, a container can do little."""

    def __init__(self, options: DockerRunnerOptions) -> None:
        """Nothing is asked of it yet."""
        self._options = options
        self._client: docker.DockerClient | None = None

    def look(self) -> str:
        """See ``ContainerEngine``: the engine is asked for the image.

        Raises:
            RunnerError: the engine is root's own, is not there or refuses, or has another image.
        """
        with _engine_errors():
            image_id = self._find_image(self._engine())
        return f"the engine has the image {image_id[:19]}"

    def start(self, names: JobNames, job: JobSpec) -> Container:
        """See ``ContainerEngine``."""
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
            self.end(container, names)
            raise
        return container

    def standing_of(self, started: Container) -> Standing:
        """See ``ContainerEngine``."""
        with _engine_errors():
            started.reload()
            state = started.attrs["State"]
        if state.get("Status") not in {"exited", "dead"}:
            return Standing(is_started=True)
        end = TrainerEnd(
            cause=EndCause.EXITED, exit_code=int(state["ExitCode"]), is_out_of_memory=bool(state.get("OOMKilled"))
        )
        return Standing(is_started=True, end=end)

    def check_wait(self, waited_s: float) -> None:
        """See ``ContainerEngine``: a container that is started has begun, and waits for nothing."""

    def end(self, started: Container, names: JobNames) -> None:
        """See ``ContainerEngine``: killed and removed; what it said last is kept in the run's log."""
        from docker.errors import DockerException, NotFound
        from requests.exceptions import RequestException

        with _engine_errors(), suppress(NotFound):
            # A log that cannot be had keeps nothing from being removed.
            with suppress(DockerException, RequestException):
                self._keep_log(started, names[0])
            started.remove(force=True)

    def remove_orphans(self) -> None:
        """See ``ContainerEngine``."""
        from docker.errors import NotFound

        with _engine_errors():
            found = self._engine().containers.list(all=True, filters={"label": f"{LABEL_JOBS}={self._options.label}"})
            for container in found:
                # A dataset that a command has looked at meanwhile is that command's.
                if is_of_a_round(container.labels.get(LABEL_JOB, "")):
                    log.warning("orphan_removed", job=container.labels[LABEL_JOB])
                    with suppress(NotFound):
                        container.remove(force=True)

    def close(self) -> None:
        """See ``ContainerEngine``."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _plan(self, client: docker.DockerClient, names: JobNames, job: JobSpec) -> ContainerPlan:
        options, below = self._options, work_below(names)
        check_image_of_run(options.image, job)
        return ContainerPlan(
            image_id=self._find_image(client),
            words=words_of(names, options.words),
            work_source=str(PurePosixPath(options.jobs_source) / below),
            work_target=str(JOBS_IN_CONTAINER / below),
            mounts=options.mounts,
            limits=options.limits,
            user=options.user,
            labels={LABEL_JOBS: options.label, LABEL_JOB: "/".join(names)},
            environment=thread_environment(job.threads),
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

    def _keep_log(self, container: Container, run: str) -> None:
        said = container.logs(tail=_LOG_LINES)[-_MAX_LOG_BYTES:]
        with suppress(OSError, JobsFolderUnsafeError), held_folder(self._options.jobs_dir, run) as spool:
            write_file(spool / LOG_FILE, bytes(said))


def _try_socket(engine: str) -> None:
    """Open a Unix socket once, so that what is wrong with it is told in the system's own words.

    Raises:
        OSError: it cannot be opened.
    """
    if engine.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as tried:
            tried.connect(engine.removeprefix("unix://"))


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
