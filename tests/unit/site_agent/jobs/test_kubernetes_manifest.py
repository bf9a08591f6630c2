from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import kubernetes_validate
import pytest

from site_agent.errors import ImageMismatchError, RunnerError
from site_agent.jobs.container_plan import ContainerLimits
from site_agent.jobs.kubernetes_manifest import ClaimMount, PodPlan, job_manifest, standing_of

PLAN = PodPlan(
    name="wardround-0123456789ab",
    namespace="hospital",
    image="registry.hospital.example/wardround/trainer@sha256:" + "ab" * 32,
    words=("run", "/srv/wardround/jobs/run-a/0.0"),
    jobs_claim="wardround-jobs",
    work=PurePosixPath("run-a"),
    mounts=(ClaimMount(claim="records", target="/data"), ClaimMount(claim="models", target="/models")),
    limits=ContainerLimits(memory_bytes=8 << 30),
    jobs_label="0123456789abcdef",
    job_label="run-a/0.0",
    timeout_s=3600.5,
    environment={"OMP_NUM_THREADS": "4"},
    node_selector={},
)
FULL = replace(
    PLAN, limits=ContainerLimits(gpus=2), node_selector={"gpu": "a100"}, runtime_class="gvisor", command=("python",)
)


def pod_of(plan: PodPlan) -> Any:
    return job_manifest(plan)["spec"]["template"]["spec"]  # type: ignore[index]


@pytest.mark.parametrize("plan", [PLAN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_manifest_is_a_job_of_the_published_schema(plan: PodPlan, version: str) -> None:
    kubernetes_validate.validate(job_manifest(plan), version, strict=True)


def test_schema_finds_a_planted_fault() -> None:
    # Otherwise the test above proves nothing.
    document = job_manifest(PLAN)
    document["spec"]["template"]["spec"]["automountServiceAcountToken"] = False  # type: ignore[index]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_pod_keeps_the_restricted_standard() -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/, "Restricted", control by control.
    pod = pod_of(FULL)
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys()
    assert security["privileged"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(volume.keys() - {"name"} <= {"persistentVolumeClaim", "emptyDir"} for volume in pod["volumes"])
    assert not any("hostPort" in port for port in container.get("ports", ()))


def test_pod_gets_no_token_and_writes_to_its_run_alone() -> None:
    pod = pod_of(PLAN)
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = [mount for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert {(mount["mountPath"], mount.get("subPath")) for mount in writable} == {
        ("/srv/wardround/jobs/run-a", "run-a"),
        ("/tmp", None),
        ("/dev/shm", None),
    }
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}) for volume in pod["volumes"]}
    assert claims["data-0"] == {"claimName": "records", "readOnly": True}


def test_pod_carries_the_label_that_the_charts_network_policy_selects() -> None:
    labels = job_manifest(PLAN)["spec"]["template"]["metadata"]["labels"]  # type: ignore[index]
    assert labels["app.kubernetes.io/component"] == "trainer-job"


def test_job_is_tried_once_ends_by_its_deadline_and_is_cleared_away() -> None:
    spec: Any = job_manifest(PLAN)["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] == 3601
    assert spec["ttlSecondsAfterFinished"] == 600
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_gpus_are_asked_for_as_limits_and_tainted_nodes_are_tolerated() -> None:
    assert pod_of(FULL)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod_of(FULL)["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in pod_of(PLAN)["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("image", ["sha256:" + "ab" * 32, "wardround/trainer:0.1.0-cpu", ""])
def test_image_without_its_registrys_digest_is_refused(image: str) -> None:
    with pytest.raises(ImageMismatchError):
        replace(PLAN, image=image)


def test_root_and_all_gpus_are_refused() -> None:
    with pytest.raises(RunnerError):
        replace(PLAN, user=0)
    with pytest.raises(RunnerError):
        replace(PLAN, limits=ContainerLimits(gpus=-1))


@pytest.mark.parametrize(
    ("claim", "target"),
    [
        ("/srv/data", "/data"),
        ("Records", "/data"),
        ("records", "data"),
        ("records", "/srv"),
        ("records", "/opt/wardround"),
    ],
)
def test_mount_that_is_no_claim_or_lies_over_something_is_refused(claim: str, target: str) -> None:
    with pytest.raises(RunnerError):
        ClaimMount(claim=claim, target=target)


def condition(kind: str, **more: str) -> dict[str, object]:
    return {"conditions": [{"type": kind, "status": "True", **more}]}


def test_exit_code_is_read_from_the_failure_policys_condition() -> None:
    # The message of the Job controller, Kubernetes 1.31, docs "Handling retriable and non-retriable pod failures".
    said = (
        "Container main for pod default/job-pod-failure-policy-failjob-8ckj8 failed with exit code 42 "
        "matching FailJob rule at index 0"
    )
    standing = standing_of(condition("Failed", reason="PodFailurePolicy", message=said))
    assert (standing.is_over, standing.exit_code) == (True, 42)


def test_job_whose_pods_are_not_gone_yet_is_not_over() -> None:
    assert not standing_of(condition("FailureTarget", message="exit code 9")).is_over
    assert not standing_of({"active": 1, "ready": 0}).is_started
    assert standing_of({"active": 1, "ready": 1}).is_started
    assert standing_of(condition("Complete")).is_over
    assert standing_of(condition("Failed", reason="DeadlineExceeded", message="")).is_past_deadline


@pytest.mark.parametrize("status", [{}, {"conditions": None}, {"conditions": "x"}, {"conditions": [1]}])
def test_status_that_says_nothing_is_not_over(status: dict[str, object]) -> None:
    assert not standing_of(status).is_over
