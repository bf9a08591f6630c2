"""The ``kubernetes`` runner: one Job for each life of a trainer, in the agent's own namespace.

The agent's Role may create, get, list, watch and delete Jobs and nothing else: no pods, no logs, no secrets. So all
that is known of a trainer is its Job's status and what it writes into the jobs folder, which is a volume of both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import structlog

from site_agent.errors import EngineUnavailableError, GpuUnavailableError, JobTimedOutError, RunnerError
from site_agent.jobs.container_plan import JOBS_IN_CONTAINER, ContainerLimits, check_image_of_run
from site_agent.jobs.held_folder import held_folder, unsafe_errors
from site_agent.jobs.job_dir import JobFailure, JobResult, JobSpec, read_result, write_job
from site_agent.jobs.kubernetes_manifest import (
    COMPONENT,
    COMPONENT_LABEL,
    JOB_ANNOTATION,
    JOBS_LABEL,
    ClaimMount,
    JobStanding,
    PodPlan,
    job_manifest,
    standing_of,
)
from site_agent.jobs.lives import EndCause, Lives, ProgressFollower, TrainerEnd
from site_agent.jobs.runner import ProgressListener, succeeded
from site_agent.jobs.spool import names_of
from site_agent.jobs.spool_files import INSPECTIONS_FOLDER

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, BatchV1Api

log = structlog.get_logger(__name__)

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_REQUEST_TIMEOUT_S = 30
_GONE_WITHIN_S = 120.0
_API_ADVICE = (
    "The agent's Role must allow create, get, list, watch and delete of jobs.batch in its namespace, and nothing else; "
    "the chart site-agent makes it. 'kubectl auth can-i create jobs --as=system:serviceaccount:NAMESPACE:NAME' asks."
)
_LOOK_ADVICE = f"'kubectl describe pods -l {COMPONENT_LABEL}={COMPONENT}' in the agent's namespace says why."


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesRunnerOptions:
    """How Jobs are made.

    Attributes:
        jobs_dir: the jobs folder, as this agent sees it.
        jobs_claim: the claim that holds it.
        kubeconfig: how to reach the cluster; None: as a pod of it.
        pending_timeout_s: how long a pod may wait for a node and its image.
        look_every_s: how often a Job's status is asked for.
    """

    jobs_dir: Path
    jobs_claim: str
    namespace: str
    image: str
    kubeconfig: Path | None = None
    mounts: tuple[ClaimMount, ...] = ()
    limits: ContainerLimits = field(default_factory=ContainerLimits)
    user: int = 10001
    group: int = 10001
    service_account: str = "default"
    words: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str | None = None
    n_lives_in_vain: int = 3
    restart_wait_s: float = 1.0
    idle_timeout_s: float = 1800.0
    pending_timeout_s: float = 900.0
    look_every_s: float = 2.0

    @property
    def label(self) -> str:
        """Names the jobs folder, so that an agent that starts again finds its own Jobs."""
        return hashlib.sha256(f"{self.namespace}/{self.jobs_claim}".encode()).hexdigest()[:16]


class KubernetesRunner:
    """Runs each job as a Job. Invariant: a call that ends has deleted its Job, and waited until its pod was gone."""

    def __init__(self, options: KubernetesRunnerOptions) -> None:
        """Nothing is asked of the cluster before the first job.

        Raises:
            ImageMismatchError: the image is not named by its registry's digest.
            RunnerError: the settings ask for what the restricted standard refuses.
        """
        self._options = options
        self._client: ApiClient | None = None
        self._locks: dict[str, asyncio.Lock] = {}
        # What cannot be made is said when the agent starts, not when the first round comes.
        self._plan_of(("run-none", "0.0"), timeout_s=1.0, threads=None)

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """See ``JobRunner``."""
        names = names_of(self._options.jobs_dir, job_dir)
        check_image_of_run(self._options.image, job)
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
        """See ``JobRunner``: Jobs of rounds that carry this jobs folder's label are deleted."""
        try:
            for name in await asyncio.to_thread(self._list_orphans):
                log.warning("orphan_removed", job=name)
                await self._delete(name)
        except RunnerError as error:
            # The agent has more to do than to train; the next job says it again.
            log.warning("cluster_not_asked", code=error.code, cause=error.message)

    async def stop_run(self, run_folder: Path) -> None:
        """See ``JobRunner``: no pod is kept for a run."""

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
        """One Job, from its making to the end of its pod, whatever happens in between."""
        plan = self._plan_of(names, timeout_s=job.timeout_s, threads=job.threads)
        try:
            # Shielded, so that what a thread makes of a call that was given up is deleted all the same.
            making = asyncio.ensure_future(asyncio.to_thread(self._create, plan))
            try:
                await asyncio.shield(making)
            except asyncio.CancelledError:
                with suppress(RunnerError):
                    await making
                raise
            return await self._wait_for_end(plan.name, follower)
        finally:
            await self._delete(plan.name)

    async def _wait_for_end(self, name: str, follower: ProgressFollower) -> JobResult | JobFailure | TrainerEnd:
        now = asyncio.get_running_loop().time
        alive_at = made_at = now()
        has_begun = False
        while True:
            standing = await asyncio.to_thread(self._standing, name)
            if await follower.look():
                alive_at, has_begun = now(), True
            if standing is None or standing.is_over:
                await follower.look()
                result = await asyncio.to_thread(read_result, follower.job_dir)
                return result if result is not None else _end_of(standing)
            if standing.is_started and not has_begun:
                alive_at, has_begun = now(), True
            if not has_begun and now() - made_at > self._options.pending_timeout_s:
                raise self._pending_error()
            if has_begun and now() - alive_at > self._options.idle_timeout_s:
                return TrainerEnd(cause=EndCause.HUNG)
            await asyncio.sleep(self._options.look_every_s)

    def _pending_error(self) -> RunnerError:
        waited_s = round(self._options.pending_timeout_s)
        if self._options.limits.gpus:
            advice = (
                "No node gave it nvidia.com/gpu: install NVIDIA's device plugin, free a GPU, or set runner.gpus to 0 "
                f"and runner.device to cpu. {_LOOK_ADVICE}"
            )
            return GpuUnavailableError("the trainer's pod got no node with a GPU", advice=advice, waited_s=waited_s)
        advice = f"{_LOOK_ADVICE} Most often: no node has the memory, a claim is not bound, or the image is not there."
        return RunnerError("the trainer's pod did not start", advice=advice, waited_s=waited_s)

    def _plan_of(self, names: tuple[str, str], *, timeout_s: float, threads: int | None) -> PodPlan:
        options, (run, name) = self._options, names
        return PodPlan(
            name=f"wardround-{secrets.token_hex(6)}",
            namespace=options.namespace,
            image=options.image,
            words=("run", str(JOBS_IN_CONTAINER / run / name), *options.words),
            jobs_claim=options.jobs_claim,
            work=PurePosixPath(run, name) if run == INSPECTIONS_FOLDER else PurePosixPath(run),
            mounts=options.mounts,
            limits=options.limits,
            jobs_label=options.label,
            job_label=f"{run}/{name}",
            timeout_s=timeout_s,
            user=options.user,
            group=options.group,
            service_account=options.service_account,
            environment={} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
            command=options.command,
            node_selector=options.node_selector,
            runtime_class=options.runtime_class,
        )

    def _create(self, plan: PodPlan) -> None:
        try:
            self._ask("create_namespaced_job", self._options.namespace, job_manifest(plan))
        except _NotThereError as error:
            message = "the cluster has no such namespace"
            raise EngineUnavailableError(message, advice=_API_ADVICE, namespace=plan.namespace) from error

    def _standing(self, name: str) -> JobStanding | None:
        """The Job's standing; None where it is no more."""
        try:
            document = self._ask("read_namespaced_job", name, self._options.namespace)
        except _NotThereError:
            return None
        status = document.get("status")
        return standing_of(status if isinstance(status, dict) else {})

    async def _delete(self, name: str) -> None:
        """Delete a Job and wait until it is gone, and with it its pod: its folder is free only then."""
        try:
            await asyncio.to_thread(self._ask_to_delete, name)
            async with asyncio.timeout(_GONE_WITHIN_S):
                while await asyncio.to_thread(self._standing, name) is not None:  # noqa: ASYNC110 - the cluster's Job
                    await asyncio.sleep(min(self._options.look_every_s, 1.0))
        except (RunnerError, TimeoutError) as error:
            log.warning("job_not_deleted", job=name, cause=type(error).__name__)

    def look(self) -> str:
        """Ask for this agent's Jobs, and make none; what was found, in words. Blocks on the cluster.

        Raises:
            RunnerError: the cluster does not answer, or does not let this agent see its Jobs.
        """
        n_left = len(self._list_orphans())
        return f"the cluster lets this agent see its Jobs in {self._options.namespace}; {n_left} there now"

    def _ask_to_delete(self, name: str) -> None:
        with suppress(_NotThereError):
            self._ask("delete_namespaced_job", name, self._options.namespace, propagation_policy="Foreground")

    def _list_orphans(self) -> list[str]:
        selector = f"{JOBS_LABEL}={self._options.label}"
        try:
            document = self._ask("list_namespaced_job", self._options.namespace, label_selector=selector)
        except _NotThereError:
            return []
        listed = document.get("items")
        found = [item["metadata"] for item in listed] if isinstance(listed, list) else []
        # A dataset that a command has looked at meanwhile is that command's.
        return [str(one["name"]) for one in found if _is_of_a_round(one)]

    def _ask(self, call: str, *words: object, **options: object) -> Mapping[str, object]:
        """Make one call and read its JSON: this runner looks at little of it, the client's models look at all."""
        with _api_errors():
            answer = getattr(self._jobs(), call)(
                *words, _preload_content=False, _request_timeout=_REQUEST_TIMEOUT_S, **options
            )
            document: dict[str, object] = json.loads(answer.data)
        return document

    def _jobs(self) -> BatchV1Api:
        try:
            from kubernetes import client, config
        except ImportError as error:
            advice = "Install wardround[kubernetes-runner]."
            raise RunnerError("the Kubernetes client is not installed", advice=advice) from error
        if self._client is None:
            configuration = client.Configuration()
            if self._options.kubeconfig is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(str(self._options.kubeconfig), client_configuration=configuration)
            # The settings say how to reach it; what a shell has set must not.
            configuration.proxy = None
            configuration.retries = 2
            self._client = client.ApiClient(configuration)
        return client.BatchV1Api(self._client)


def _end_of(standing: JobStanding | None) -> TrainerEnd:
    where = f"the pod's log ('kubectl logs -l {COMPONENT_LABEL}={COMPONENT}'), while the cluster keeps it"
    if standing is None:
        return TrainerEnd(cause=EndCause.RESTARTED, told_where=where)
    return TrainerEnd(cause=EndCause.EXITED, exit_code=standing.exit_code, told_where=where)


def _is_of_a_round(metadata: Mapping[str, Mapping[str, str]]) -> bool:
    return str((metadata.get("annotations") or {}).get(JOB_ANNOTATION, "")).startswith("run-")


class _NotThereError(Exception):
    """What was asked for is not there."""


@contextmanager
def _api_errors() -> Iterator[None]:
    """Translate the API's errors.

    Raises:
        _NotThereError: there is no such Job, or no such namespace.
        EngineUnavailableError: the API does not answer, or does not let this agent.
    """
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status == HTTPStatus.NOT_FOUND:
            raise _NotThereError from error
        message = "the cluster's API refused"
        raise EngineUnavailableError(
            message, advice=_API_ADVICE, status=error.status, reason=str(error.reason)
        ) from error
    except ConfigException as error:
        message = "the cluster cannot be reached as the settings say"
        advice = (
            "As a pod, the agent needs its service account's token mounted; elsewhere, runner.engine is a kubeconfig."
        )
        raise EngineUnavailableError(message, advice=advice) from error
    except (HTTPError, OSError, ValueError) as error:
        message = "the cluster's API does not answer"
        raise EngineUnavailableError(message, advice=_API_ADVICE, reason=type(error).__name__) from error
