"""Where data, keys and state are mounted, what outlives a release, and that no secret stands in what is rendered."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.charts import VALUE_SETS, containers, of_kind, pods, rendered

SITE_SETS = [pair for pair in VALUE_SETS if pair[0] == "site-agent"]


def claims_of(pod: Any) -> dict[str, Any]:
    """Name of the claim to its volume."""
    volumes = [one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one]
    return {one["persistentVolumeClaim"]["claimName"]: one for one in volumes}


@pytest.mark.parametrize(("chart", "values"), SITE_SETS)
def test_data_is_read_only_and_in_the_trainer_only(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        claims = claims_of(pod)
        is_trainer = name.endswith("-trainer")
        assert ("hospital-data" in claims) == is_trainer, name
        assert ("base-models" in claims) == is_trainer, name
        for claim in ("hospital-data", "base-models") if is_trainer else ():
            # Read-only as a claim too: else the kubelet may change the owner of what lies in it.
            assert claims[claim]["persistentVolumeClaim"]["readOnly"] is True
            volume = claims[claim]["name"]
            mounts = [m for one in containers(pod) for m in one["volumeMounts"] if m["name"] == volume]
            assert mounts
            assert all(mount["readOnly"] is True for mount in mounts)


@pytest.mark.parametrize(("chart", "values"), SITE_SETS)
def test_state_is_mounted_by_the_agent_only_and_there_is_one(chart: str, values: str) -> None:
    documents = rendered(chart, values)
    state = "my-state" if values == "gpu" else "wr-wardround-site-agent-state"
    assert [name for name, pod in pods(documents) if state in claims_of(pod)] == [
        "StatefulSet/wr-wardround-site-agent-agent"
    ]
    (agent,) = of_kind(documents, "StatefulSet")
    assert agent["spec"]["replicas"] == 1
    assert not of_kind(documents, "HorizontalPodAutoscaler")


@pytest.mark.parametrize(("chart", "values"), SITE_SETS)
def test_trainer_holds_no_secret(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        if name.endswith("-trainer"):
            assert all("secret" not in volume and "projected" not in volume for volume in pod["spec"]["volumes"])
            assert all("valueFrom" not in variable for one in containers(pod) for variable in one["env"])


def test_trainer_is_on_the_agents_node_where_the_folder_is_one_nodes() -> None:
    (near,) = (pod for name, pod in pods(rendered("site-agent", "minimal")) if name.endswith("-trainer"))
    (term,) = near["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "agent"
    (free,) = (pod for name, pod in pods(rendered("site-agent", "proxy")) if name.endswith("-trainer"))
    assert "affinity" not in free["spec"]
    (both,) = (pod for name, pod in pods(rendered("site-agent", "gpu")) if name.endswith("-trainer"))
    assert set(both["spec"]["affinity"]) == {"nodeAffinity", "podAffinity"}


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_claims_outlive_the_release_and_never_change_their_names(chart: str, values: str) -> None:
    first = of_kind(rendered(chart, values), "PersistentVolumeClaim")
    for claim in first:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert "helm.sh/hook" not in claim["metadata"]["annotations"]
    # What may change from version to version: image, settings, revision.
    later = of_kind(rendered(chart, values, "image.tag=9.9.9", "commonLabels.new=label"), "PersistentVolumeClaim")
    assert [(one["metadata"]["name"], one["spec"]) for one in first] == [
        (one["metadata"]["name"], one["spec"]) for one in later
    ]


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_what_chooses_pods_never_changes(chart: str, values: str) -> None:
    def selectors(*settings: str) -> dict[str, Any]:
        return {
            one["metadata"]["name"]: one["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "StatefulSet")
            for one in of_kind(rendered(chart, values, *settings), kind)
        }

    # A Deployment's selector cannot be changed: an upgrade that tries is refused.
    assert selectors() == selectors("image.tag=9.9.9", "commonLabels.new=label")


@pytest.mark.parametrize(("chart", "values"), [pair for pair in VALUE_SETS if pair != ("coordinator", "test")])
def test_no_secret_is_rendered(chart: str, values: str) -> None:
    assert of_kind(rendered(chart, values), "Secret") == []


def test_tests_database_gets_a_password_that_nobody_chose_unless_one_is_given() -> None:
    (made,) = of_kind(rendered("coordinator", "test"), "Secret")
    assert len(base64.b64decode(made["data"]["password"])) == 32
    given = rendered("coordinator", "test", "postgresql.existingSecret=mine")
    assert of_kind(given, "Secret") == []
    for name, pod in pods(given):
        secrets = [v["secret"]["secretName"] for v in pod["spec"].get("volumes", []) if "secret" in v]
        assert secrets == ["mine"] * (not name.startswith("Pod/")), name


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_secrets_come_as_files_never_as_variables(chart: str, values: str) -> None:
    for name, pod in pods(rendered(chart, values)):
        for container in containers(pod):
            assert all("valueFrom" not in one for one in container.get("env", [])), name
            assert "envFrom" not in container, name
        for volume in pod["spec"].get("volumes", []):
            if "secret" in volume and "items" not in volume["secret"]:
                assert volume["secret"]["defaultMode"] == 0o440, name


def test_helm_tests_see_the_root_certificate_and_no_key() -> None:
    (pod,) = (pod for name, pod in pods(rendered("coordinator", "minimal")) if name.startswith("Pod/"))
    (secret,) = (volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume)
    assert secret["items"] == [{"key": "root.pem", "path": "root.pem"}]


def test_only_upkeep_and_init_may_change_keys() -> None:
    for values in ("test", "external-database"):
        for name, pod in pods(rendered("coordinator", values)):
            mounts = [m for one in containers(pod) for m in one["volumeMounts"] if m["name"] == "keys"]
            is_for_change = name.endswith("-upkeep") or "-init-" in name
            assert any(not mount.get("readOnly") for mount in mounts) == is_for_change, name
