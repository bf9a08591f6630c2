"""Every pod of both charts is what the restricted Pod Security Standard demands, and what we demand besides."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.charts import VALUE_SETS, containers, of_kind, pods, rendered

# Pod Security Standards, "Restricted" and the "Baseline" below it, as Kubernetes documents them.
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
OUR_UID = 10001


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_pods_meet_the_restricted_standard(chart: str, values: str) -> None:
    seen = 0
    for name, pod in pods(rendered(chart, values)):
        seen += 1
        spec = pod["spec"]
        for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            assert not spec.get(key), name
        for volume in spec.get("volumes", []):
            (kind,) = set(volume) - {"name"}
            assert kind in RESTRICTED_VOLUMES, f"{name}: {volume}"
        of_pod = spec["securityContext"]
        assert of_pod["runAsNonRoot"] is True, name
        assert of_pod["runAsUser"] > 0, name
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert "sysctls" not in of_pod
        for container in containers(pod):
            _check_container(f"{name}/{container['name']}", container)
    assert seen >= 3


def _check_container(name: str, container: Any) -> None:
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False, name
    assert own["privileged"] is False, name
    assert own["capabilities"] == {"drop": ["ALL"]}, name
    assert own["runAsNonRoot"] is True, name
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert "runAsUser" not in own, f"{name}: the pod says as whom"
    assert "seLinuxOptions" not in own, name
    assert "procMount" not in own, name
    assert all("hostPort" not in port for port in container.get("ports", [])), name
    # Beyond the standard.
    assert own["readOnlyRootFilesystem"] is True, name
    assert container["resources"]["limits"]["memory"], name
    assert container["resources"]["requests"]["cpu"], name


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_pods_run_as_our_user_but_for_the_tests_database(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        of_pod = pod["spec"]["securityContext"]
        wanted = 999 if name.startswith("StatefulSet/") and name.endswith("-postgresql") else OUR_UID
        assert [of_pod["runAsUser"], of_pod["runAsGroup"], of_pod["fsGroup"]] == [wanted] * 3, name
        # Else every mount would open the files of the site's keys to the group.
        assert of_pod["fsGroupChangePolicy"] == "OnRootMismatch", name


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_no_pod_gets_a_token_but_an_agent_that_makes_jobs(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        makes_jobs = values == "kubernetes" and name.endswith("-agent")
        assert pod["spec"]["automountServiceAccountToken"] is makes_jobs, name
        assert pod["spec"]["enableServiceLinks"] is False, name
    for account in of_kind(rendered(chart, values), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_long_lived_pods_are_probed(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        if not name.startswith(("Deployment/", "StatefulSet/")) or name.endswith("-upkeep"):
            continue
        for container in pod["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


@pytest.mark.parametrize(
    ("chart", "values", "image"),
    [
        ("coordinator", "minimal", "wardround/coordinator:0.1.0"),
        ("coordinator", "full", "registry.example.org/wardround/coordinator@sha256:" + "0123456789abcdef" * 4),
        ("site-agent", "minimal", "wardround/site-agent:0.1.0"),
        ("site-agent", "gpu", "registry.example.org/wardround/site-agent@sha256:" + "0123456789abcdef" * 4),
    ],
)
def test_images_are_of_this_version_or_by_digest(chart: str, values: str, image: str) -> None:
    images = {
        container["image"]
        for name, pod in pods(rendered(chart, values))
        for container in containers(pod)
        if not name.endswith("-trainer")
    }
    assert images == {image}


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ((), "wardround/trainer:0.1.0-cpu"),
        (("trainer.gpus=1",), "wardround/trainer:0.1.0-cuda"),
        (("trainer.image.tag=mine",), "wardround/trainer:mine"),
        ((f"trainer.image.digest=sha256:{'a' * 64}",), f"wardround/trainer@sha256:{'a' * 64}"),
    ],
)
def test_trainers_image_follows_its_gpus(settings: tuple[str, ...], image: str) -> None:
    (trainer,) = (p for name, p in pods(rendered("site-agent", "minimal", *settings)) if name.endswith("-trainer"))
    assert trainer["spec"]["containers"][0]["image"] == image


def test_trainer_gets_its_gpus_as_a_limit_and_shares_jobs_among_them() -> None:
    (trainer,) = (pod for name, pod in pods(rendered("site-agent", "gpu")) if name.endswith("-trainer"))
    assert trainer["spec"]["containers"][0]["args"][-2:] == ["--processes", "auto"]
    assert trainer["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert trainer["spec"]["runtimeClassName"] == "nvidia"
