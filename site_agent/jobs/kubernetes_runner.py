"""The ``kubernetes`` runner: one Job for each life of a trainer, in the agent's own namespace.

The agent's Role may create, get, list, watch and delete Jobs and nothing else: no pods, no logs, no secrets. So all
that is known of a trainer is its Job's status and what it writes into the jobs folder, which is a volume of both.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from site_agent.errors import EngineUnavailableError, GpuUnavailableError, RunnerError
from site_agent.jobs.container_plan import check_image_of_run, thread_environment, words_of, work_below
from site_agent.jobs.engine_runner import EngineRunner, EngineRunnerOptions, Standing
from site_agent.jobs.job_dir import JobSpec
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
from site_agent.jobs.lives import EndCause, TrainerEnd
from site_agent.jobs.spool_files import JobNames, is_of_a_round

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
_TOLD_WHERE = f"the pod's log ('kubectl logs -l {COMPONENT_LABEL}={COMPONENT}'), while the cluster keeps it"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesRunnerOptions(EngineRunnerOptions):
    """How Jobs are made.

    Attributes:
        jobs_claim: the claim that holds the jobs folder.
        kubeconfig: how to reach the cluster; None: as a pod of it.
        pending_timeout_s: how long a pod may wait for a node and its image.
    """

    jobs_claim: str
    namespace: str
    kubeconfig: Path | None = None
    mounts: tuple[ClaimMount, ...] = ()
    user: int = 10001
    group: int = 10001
    service_account: str = "default"
    command: tuple[str, ...] | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str | None = None
    pending_timeout_s: float = 900.0
    look_every_s: float = 2.0

    @property
    def label(self) -> str:
        """Names the jobs folder, so that an agent that starts again finds its own Jobs."""
        return hashlib.sha256(f"{self.namespace}/{self.jobs_claim}".encode()).hexdigest()[:16]


class KubernetesRunner(EngineRunner[str]):
    """Runs each job as Jobs. Invariant: a call that ends has deleted its Job, and waited until its pod was gone."""

    def __init__(self, options: KubernetesRunnerOptions) -> None:
        """Nothing is asked of the cluster before the first job.

        Raises:
            ImageMismatchError: the image is not named by its registry's digest.
            RunnerError: the settings ask for what the restricted standard refuses.
        """
        # What cannot be made is said when the agent starts, not when the first round comes.
        _plan_of(options, ("run-none", "0.0"), timeout_s=1.0, threads=None)
        super().__init__(KubernetesEngine(options), options)


class KubernetesEngine:
    """A cluster's Jobs in one namespace, as a ``ContainerEngine``; a Job goes by its name."""

    def __init__(self, options: KubernetesRunnerOptions) -> None:
        """Nothing is asked of the cluster yet."""
        self._options = options
        self._client: ApiClient | None = None

    def look(self) -> str:
        """See ``ContainerEngine``: the cluster is asked for this agent's Jobs.

        Raises:
            RunnerError: the cluster does not answer, or does not let this agent see its Jobs.
        """
        n_left = len(self._list_orphans())
        return f"the cluster lets this agent see its Jobs in {self._options.namespace}; {n_left} there now"

    def start(self, names: JobNames, job: JobSpec) -> str:
        """See ``ContainerEngine``."""
        check_image_of_run(self._options.image, job)
        plan = _plan_of(self._options, names, timeout_s=job.timeout_s, threads=job.threads)
        try:
            self._create(plan)
        except BaseException:
            # What was asked for may have been made, though the answer did not come.
            self._delete(plan.name)
            raise
        return plan.name

    def standing_of(self, started: str) -> Standing:
        """See ``ContainerEngine``."""
        standing = self._standing(started)
        if standing is None:
            return Standing(is_started=False, end=TrainerEnd(cause=EndCause.RESTARTED, told_where=_TOLD_WHERE))
        if standing.is_over:
            end = TrainerEnd(cause=EndCause.EXITED, exit_code=standing.exit_code, told_where=_TOLD_WHERE)
            return Standing(is_started=standing.is_started, end=end)
        return Standing(is_started=standing.is_started)

    def check_wait(self, waited_s: float) -> None:
        """See ``ContainerEngine``: for a node, and for the image.

        Raises:
            GpuUnavailableError: for a node with a GPU, most likely.
            RunnerError: for something else.
        """
        longest_s = self._options.pending_timeout_s
        if waited_s <= longest_s:
            return
        if self._options.limits.gpus:
            advice = (
                "No node gave it nvidia.com/gpu: install NVIDIA's device plugin, free a GPU, or set runner.gpus to 0 "
                f"and runner.device to cpu. {_LOOK_ADVICE}"
            )
            message = "the trainer's pod got no node with a GPU"
            raise GpuUnavailableError(message, advice=advice, waited_s=round(longest_s))
        advice = f"{_LOOK_ADVICE} Most often: no node has the memory, a claim is not bound, or the image is not there."
        raise RunnerError("the trainer's pod did not start", advice=advice, waited_s=round(longest_s))

    def end(self, started: str, names: JobNames) -> None:
        """See ``ContainerEngine``: what the pod said last is the cluster's to keep."""
        del names
        self._delete(started)

    def remove_orphans(self) -> None:
        """See ``ContainerEngine``."""
        for name in self._list_orphans():
            log.warning("orphan_removed", job=name)
            self._delete(name)

    def close(self) -> None:
        """See ``ContainerEngine``."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

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

    def _delete(self, name: str) -> None:
        """Delete a Job and wait until it is gone, and with it its pod: its folder is free only then."""
        try:
            self._ask_to_delete(name)
            deadline = time.monotonic() + _GONE_WITHIN_S
            while self._standing(name) is not None:
                if time.monotonic() > deadline:
                    log.warning("job_not_deleted", job=name, cause=TimeoutError.__name__)
                    return
                time.sleep(min(self._options.look_every_s, 1.0))
        except RunnerError as error:
            log.warning("job_not_deleted", job=name, cause=type(error).__name__)

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


def _plan_of(options: KubernetesRunnerOptions, names: JobNames, *, timeout_s: float, threads: int | None) -> PodPlan:
    return PodPlan(
        name=f"wardround-{secrets.token_hex(6)}",
        namespace=options.namespace,
        image=options.image,
        words=words_of(names, options.words),
        jobs_claim=options.jobs_claim,
        work=work_below(names),
        mounts=options.mounts,
        limits=options.limits,
        jobs_label=options.label,
        job_label="/".join(names),
        timeout_s=timeout_s,
        user=options.user,
        group=options.group,
        service_account=options.service_account,
        environment=thread_environment(threads),
        command=options.command,
        node_selector=options.node_selector,
        runtime_class=options.runtime_class,
    )


def _is_of_a_round(metadata: Mapping[str, Mapping[str, str]]) -> bool:
    return is_of_a_round(str((metadata.get("annotations") or {}).get(JOB_ANNOTATION, "")))


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
