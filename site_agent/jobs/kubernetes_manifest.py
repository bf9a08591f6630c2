"""The Job that trains one round in a cluster, as a document. Pure; the ``kubernetes`` runner sends it.

It keeps the restricted Pod Security Standard, is given no token of the cluster, and carries the label by which the
chart's NetworkPolicy denies it all traffic. A cluster whose network does not enforce policies does not: then the pod
has a network, and ``docs/operating/runners.md`` says so.

A pod's end is told by its Job alone, since the agent may look at no pod: the failure policy makes the Job fail at once
on any exit code but 0, and writes that code into the Job's condition.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from site_agent.errors import ImageMismatchError, RunnerError
from site_agent.jobs.container_plan import JOBS_IN_CONTAINER, ContainerLimits, check_image_name

COMPONENT = "trainer-job"
CONTAINER = "trainer"
COMPONENT_LABEL = "app.kubernetes.io/component"
JOBS_LABEL = "wardround.org/jobs"
JOB_ANNOTATION = "wardround.org/job"

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_GRACE_S = 5
_KEPT_AFTER_END_S = 600
_EXIT_CODE = re.compile(r"exit code ([0-9]{1,3})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMount:
    """A volume claim of data or base models, and where the trainer finds it; mounted read-only.

    Raises:
        RunnerError: it is no claim's name, or would lie over the program or the jobs.
    """

    claim: str
    target: str

    def __post_init__(self) -> None:
        if _CLAIM.fullmatch(self.claim) is None:
            message = "a mount of runner.mounts does not name a volume claim"
            advice = "With runner.kind kubernetes, source is the claim's name."
            raise RunnerError(message, advice=advice, source=self.claim[:80])
        place = PurePosixPath(self.target)
        held = (JOBS_IN_CONTAINER, PurePosixPath("/opt/wardround"))
        is_over = any(place == one or place in one.parents or one in place.parents for one in held)
        if not place.is_absolute() or ".." in place.parts or is_over:
            message = "a mount of runner.mounts lies over the trainer's program or its jobs, or is no absolute path"
            raise RunnerError(message, advice="Use /data and /models.", target=self.target[:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """One Job, and where it runs.

    Attributes:
        name: of the Job.
        image: by digest.
        words: the command line, after the program.
        jobs_claim: the claim of the jobs folder.
        work: the folder in it that is mounted for writing, and nothing beside it.
        jobs_label: names the jobs folder, so that an agent finds its own Jobs again.
        job_label: ``RUN/ROUND``.
        user, group: not root.
        timeout_s: after which the cluster ends it, whether an agent is there or not.
    """

    name: str
    namespace: str
    image: str
    words: tuple[str, ...]
    jobs_claim: str
    work: PurePosixPath
    mounts: tuple[ClaimMount, ...]
    limits: ContainerLimits
    jobs_label: str
    job_label: str
    timeout_s: float
    user: int = 10001
    group: int = 10001
    service_account: str = "default"
    environment: Mapping[str, str]
    command: tuple[str, ...] | None = None
    node_selector: Mapping[str, str]
    runtime_class: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the restricted standard refuses, in words that say what to write.

        Raises:
            ImageMismatchError: the image is not named by its registry's digest.
            RunnerError: the user is root, or all GPUs are asked for.
        """
        if "@" not in check_image_name(self.image):
            advice = "Write runner.image as NAME@sha256:DIGEST: a cluster knows no ids of one engine."
            raise ImageMismatchError("runner.image is an engine's id", advice=advice)
        if self.user == 0 or self.group == 0:
            raise RunnerError("a pod does not run as root", advice="Write runner.user as 10001:10001.")
        if self.limits.gpus < 0:
            advice = "Write runner.gpus as a number: a cluster gives GPUs by number."
            raise RunnerError("a pod cannot ask for all GPUs", advice=advice)


def job_manifest(plan: PodPlan) -> dict[str, object]:
    """The Job as the API takes it: ``batch/v1``."""
    labels = {"app.kubernetes.io/name": "wardround", COMPONENT_LABEL: COMPONENT, JOBS_LABEL: plan.jobs_label}
    annotations = {JOB_ANNOTATION: plan.job_label}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": plan.name,
            "namespace": plan.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            # A life that ends is followed by another only where it got further, and only this site's agent knows that.
            "backoffLimit": 0,
            "parallelism": 1,
            "completions": 1,
            "activeDeadlineSeconds": max(1, math.ceil(plan.timeout_s)),
            "ttlSecondsAfterFinished": _KEPT_AFTER_END_S,
            "podFailurePolicy": {
                "rules": [
                    # A node that is drained is nobody's fault: the next pod goes on from the checkpoint.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": _pod_spec(plan)},
        },
    }


def _pod_spec(plan: PodPlan) -> dict[str, object]:
    size = str(plan.limits.tmp_bytes)
    spec: dict[str, object] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": plan.service_account,
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": plan.user,
            "runAsGroup": plan.group,
            "fsGroup": plan.group,
            # Else every file of a large volume is given to the group anew with every round.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan)],
        "volumes": [
            {"name": "jobs", "persistentVolumeClaim": {"claimName": plan.jobs_claim}},
            *({"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": size}} for name in ("tmp", "shared")),
            *(
                {"name": f"data-{k}", "persistentVolumeClaim": {"claimName": mount.claim, "readOnly": True}}
                for k, mount in enumerate(plan.mounts)
            ),
        ],
    }
    if plan.limits.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if plan.node_selector:
        spec["nodeSelector"] = dict(plan.node_selector)
    if plan.runtime_class is not None:
        spec["runtimeClassName"] = plan.runtime_class
    return spec


def _container(plan: PodPlan) -> dict[str, object]:
    memory = str(plan.limits.memory_bytes)
    limits = {"memory": memory} | ({"nvidia.com/gpu": str(plan.limits.gpus)} if plan.limits.gpus else {})
    container: dict[str, object] = {
        "name": CONTAINER,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "args": list(plan.words),
        "env": [{"name": name, "value": value} for name, value in sorted(plan.environment.items())],
        "resources": {"limits": limits, "requests": {"memory": memory, "cpu": "1"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "jobs", "mountPath": str(JOBS_IN_CONTAINER / plan.work), "subPath": str(plan.work)},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
            {"name": "shared", "mountPath": "/dev/shm"},  # noqa: S108 - the same
            *(
                {"name": f"data-{k}", "mountPath": mount.target, "readOnly": True}
                for k, mount in enumerate(plan.mounts)
            ),
        ],
    }
    if plan.command is not None:
        container["command"] = list(plan.command)
    return container


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStanding:
    """What a Job says of itself.

    Attributes:
        is_over: complete or failed.
        is_started: whether a pod of it is ready, or was.
        exit_code: of its container, where the failure policy told it.
        is_past_deadline: whether the cluster ended it for its time.
    """

    is_over: bool
    is_started: bool
    exit_code: int | None = None
    is_past_deadline: bool = False


def standing_of(status: Mapping[str, object]) -> JobStanding:
    """Read a Job's ``status``, as the API's JSON has it."""
    listed = status.get("conditions")
    conditions = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    held = {str(one.get("type")): one for one in conditions if one.get("status") == "True"}
    failed = held.get("Failed") or held.get("FailureTarget")
    # FailureTarget comes before the pods are gone; the Job is over when they are.
    is_over = "Complete" in held or "Failed" in held
    message = "" if failed is None else str(failed.get("message"))
    found = _EXIT_CODE.search(message)
    is_started = any(bool(status.get(key)) for key in ("ready", "succeeded", "failed", "terminating"))
    return JobStanding(
        is_over=is_over,
        is_started=is_started or is_over,
        exit_code=None if found is None else int(found.group(1)),
        is_past_deadline=failed is not None and failed.get("reason") == "DeadlineExceeded",
    )
