"""How many there are of what, and what happens first."""

from __future__ import annotations

from tests.support.charts import named, of_kind, pods, rendered

ROLES = ("api", "gateway", "driver")


def test_each_role_is_a_deployment_of_its_own() -> None:
    documents = rendered("coordinator", "minimal")
    for role in ROLES:
        deployment = named(documents, "Deployment", f"-{role}")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["serve", "--config", "/srv/wardround/coordinator.yaml", "--roles", role]
    assert len(of_kind(documents, "Deployment")) == 3


def test_autoscaler_decides_where_it_is_on_and_the_deployment_where_it_is_off() -> None:
    documents = rendered("coordinator", "minimal")
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind(documents, "HorizontalPodAutoscaler")}
    assert scaled == {"wr-wardround-coordinator-api", "wr-wardround-coordinator-gateway"}
    for one in of_kind(documents, "HorizontalPodAutoscaler"):
        assert one["apiVersion"] == "autoscaling/v2"
    for deployment in of_kind(documents, "Deployment"):
        # Else each upgrade would take back what the autoscaler decided.
        assert ("replicas" in deployment["spec"]) == (deployment["metadata"]["name"] not in scaled)


def test_disruption_budget_selects_the_pods_of_its_deployment() -> None:
    documents = rendered("coordinator", "minimal")
    for role in ROLES:
        budget = named(documents, "PodDisruptionBudget", f"-{role}")
        deployment = named(documents, "Deployment", f"-{role}")
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]
        assert budget["spec"]["maxUnavailable"] == 1


def test_configuration_that_changes_restarts_the_pods_that_read_it() -> None:
    def checksums(*settings: str) -> dict[str, str]:
        return {
            name: pod["metadata"]["annotations"]["checksum/config"]
            for chart in ("coordinator", "site-agent")
            for name, pod in pods(rendered(chart, "minimal", *settings))
            if name.startswith(("Deployment/", "StatefulSet/")) and not name.endswith("-trainer")
        }

    before, after = checksums(), checksums("config.log.level=debug")
    assert len(before) == 4
    assert all(before[name] != after[name] for name in before)


def test_schema_is_brought_up_before_the_pods_of_a_version_start() -> None:
    for values, hooks in (("minimal", "pre-install,pre-upgrade"), ("test", "pre-upgrade")):
        documents = rendered("coordinator", values)
        migrate = named(documents, "Job", "-migrate")
        assert migrate["metadata"]["annotations"]["helm.sh/hook"] == hooks
        (container,) = migrate["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["migrate", "--config", "/srv/wardround/coordinator.yaml"]
        # What a hook that runs first needs must be a hook that runs before it, or somebody else's.
        names = {
            volume["configMap"]["name"]
            for volume in migrate["spec"]["template"]["spec"]["volumes"]
            if "configMap" in volume
        }
        for name in names:
            own = named(documents, "ConfigMap", name)["metadata"]["annotations"]
            assert own["helm.sh/hook"] == hooks
            assert int(own["helm.sh/hook-weight"]) < int(migrate["metadata"]["annotations"]["helm.sh/hook-weight"])
        policy = named(documents, "NetworkPolicy", "-migrate")["metadata"]["annotations"]
        assert policy["helm.sh/hook"] == hooks
        assert migrate["spec"]["template"]["spec"]["serviceAccountName"] == "default"


def test_keys_in_a_volume_are_made_once_and_waited_for() -> None:
    documents = rendered("coordinator", "test")
    init = named(documents, "Job", "-init-1")
    (container,) = init["spec"]["template"]["spec"]["containers"]
    assert "--if-missing" in container["args"]
    assert "helm.sh/hook" not in init["metadata"].get("annotations", {})
    for role in ROLES:
        spec = named(documents, "Deployment", f"-{role}")["spec"]["template"]["spec"]
        assert [one["name"] for one in spec["initContainers"]] == ["wait-for-keys"]


def test_metrics_are_off_until_someone_turns_them_on() -> None:
    for chart in ("coordinator", "site-agent"):
        documents = rendered(chart, "minimal")
        assert not of_kind(documents, "ServiceMonitor")
        assert not [one for one in of_kind(documents, "Service") if one["metadata"]["name"].endswith("-metrics")]
    monitor = of_kind(rendered("coordinator", "full"), "ServiceMonitor")[0]
    chosen = monitor["spec"]["selector"]["matchLabels"]
    services = [
        one
        for one in of_kind(rendered("coordinator", "full"), "Service")
        if chosen.items() <= one["metadata"]["labels"].items()
    ]
    assert len(services) == 3
