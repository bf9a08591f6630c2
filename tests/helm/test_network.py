"""What can reach what: default deny selects every pod, and a site has nothing that could be dialled."""

from __future__ import annotations

from typing import Any

import pytest

from site_agent.jobs.kubernetes_manifest import COMPONENT, COMPONENT_LABEL
from tests.support.charts import VALUE_SETS, Document, named, of_kind, pods, rendered, selects, template, values_file

SITE_SETS = [pair for pair in VALUE_SETS if pair[0] == "site-agent"]
# What the runner puts on the pods of its Jobs, whatever else it puts there.
TRAINER_JOB = {COMPONENT_LABEL: COMPONENT}


def policies_of(documents: tuple[Document, ...], labels: dict[str, str]) -> list[Any]:
    """The policies that select a pod with these labels."""
    return [one for one in of_kind(documents, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels)]


def egress_of(documents: tuple[Document, ...], labels: dict[str, str]) -> list[Any]:
    """Everything that such a pod may reach: policies add up."""
    return [rule for one in policies_of(documents, labels) for rule in one["spec"].get("egress") or []]


def ingress_of(documents: tuple[Document, ...], labels: dict[str, str]) -> list[Any]:
    """Everything that may reach such a pod."""
    return [rule for one in policies_of(documents, labels) for rule in one["spec"].get("ingress") or []]


def labels_of(documents: tuple[Document, ...], suffix: str) -> dict[str, str]:
    """The labels of the pods of an object whose name ends so."""
    (pod,) = (pod for name, pod in pods(documents) if name.endswith(suffix))
    return dict(pod["metadata"]["labels"])


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_default_deny_selects_every_pod(chart: str, values: str) -> None:
    documents = rendered(chart, values)
    deny = named(documents, "NetworkPolicy", "-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert deny["ingress"] == []
    assert deny["egress"] == []
    for name, pod in pods(documents):
        assert selects(deny["podSelector"], pod["metadata"]["labels"]), name


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_every_policy_closes_both_directions_and_no_rule_is_open_to_all(chart: str, values: str) -> None:
    for policy in of_kind(rendered(chart, values), "NetworkPolicy"):
        assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction) or []:
                # In Kubernetes, a rule without peers or without ports is one for all of them.
                assert rule[side], policy["metadata"]["name"]
                assert rule["ports"], policy["metadata"]["name"]


@pytest.mark.parametrize(("chart", "values"), SITE_SETS)
def test_trainers_reach_nothing_and_are_reached_by_nothing(chart: str, values: str) -> None:
    documents = rendered(chart, values)
    for labels in (TRAINER_JOB, *([labels_of(documents, "-trainer")] if values != "kubernetes" else [])):
        assert policies_of(documents, labels)
        assert egress_of(documents, labels) == []
        assert ingress_of(documents, labels) == []


@pytest.mark.parametrize(("chart", "values"), SITE_SETS)
def test_site_has_nothing_that_could_be_dialled(chart: str, values: str) -> None:
    documents = rendered(chart, values)
    assert {"Ingress", "Gateway", "HTTPRoute", "TCPRoute", "TLSRoute"}.isdisjoint(one["kind"] for one in documents)
    services = of_kind(documents, "Service")
    assert [one["metadata"]["name"].endswith("-metrics") for one in services] == [True] * (values == "gpu")
    for service in services:
        assert service["spec"]["type"] == "ClusterIP"
        assert service["spec"]["clusterIP"] == "None"
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["metrics"]
    for name, pod in pods(documents):
        for container in pod["spec"]["containers"]:
            names = [port["name"] for port in container.get("ports", [])]
            assert names == ["metrics"] * (values == "gpu" and name.endswith("-agent"))


def test_agent_reaches_the_coordinator_and_dns_and_nothing_else() -> None:
    documents = rendered("site-agent", "minimal")
    dns, coordinator = egress_of(documents, labels_of(documents, "-agent"))
    assert {port["port"] for port in dns["ports"]} == {53}
    assert coordinator["to"] == [{"ipBlock": {"cidr": "203.0.113.7/32"}}]
    assert [port["port"] for port in coordinator["ports"]] == [8444, 8445, 8446, 8447]
    assert ingress_of(documents, labels_of(documents, "-agent")) == []


def test_agent_behind_a_proxy_reaches_the_proxy_only() -> None:
    documents = rendered("site-agent", "proxy")
    _, proxy = egress_of(documents, labels_of(documents, "-agent"))
    assert proxy == {"to": [{"ipBlock": {"cidr": "10.0.0.8/32"}}], "ports": [{"port": 3128, "protocol": "TCP"}]}


def test_agent_that_makes_jobs_reaches_the_api_besides() -> None:
    documents = rendered("site-agent", "kubernetes")
    _, _, api = egress_of(documents, labels_of(documents, "-agent"))
    assert [peer["ipBlock"]["cidr"] for peer in api["to"]] == ["10.96.0.1/32", "10.0.0.2/32"]


def test_gateway_is_open_on_its_four_ports_only() -> None:
    documents = rendered("coordinator", "minimal")
    (rule,) = ingress_of(documents, labels_of(documents, "-gateway"))
    assert [port["port"] for port in rule["ports"]] == [8444, 8445, 8446, 8447]
    (narrower,) = ingress_of(rendered("coordinator", "external-database"), labels_of(documents, "-gateway"))[:1]
    assert [port["port"] for port in narrower["ports"]] == [8444, 8445]


def test_driver_is_reached_by_nobody() -> None:
    documents = rendered("coordinator", "minimal")
    assert ingress_of(documents, labels_of(documents, "-driver")) == []


def test_rest_is_reached_by_the_tests_pods_only_until_someone_is_named() -> None:
    documents = rendered("coordinator", "minimal")
    (rule,) = ingress_of(documents, labels_of(documents, "-api"))
    assert len(rule["from"]) == 1
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"


def test_tests_database_is_reached_from_the_release_only() -> None:
    documents = rendered("coordinator", "test")
    labels = labels_of(documents, "-postgresql")
    (rule,) = ingress_of(documents, labels)
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "wr"
    assert egress_of(documents, labels) == []


def test_ingress_passes_tls_on_or_speaks_it_again() -> None:
    passed = of_kind(rendered("coordinator", "external-database"), "Ingress")[0]
    assert passed["metadata"]["annotations"]["nginx.ingress.kubernetes.io/ssl-passthrough"] == "true"
    assert "secretName" not in passed["spec"]["tls"][0]
    spoken = of_kind(rendered("coordinator", "full"), "Ingress")[0]
    assert spoken["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    assert "nginx.ingress.kubernetes.io/ssl-passthrough" not in spoken["metadata"]["annotations"]
    assert spoken["spec"]["tls"][0]["secretName"] == "fl-tls"


def test_service_for_sites_is_plain_tcp() -> None:
    for values in ("minimal", "full", "external-database", "test"):
        service = named(rendered("coordinator", values), "Service", "-gateway")["spec"]
        assert {port["protocol"] for port in service["ports"]} == {"TCP"}
        assert all("appProtocol" not in port for port in service["ports"])
    for ingress in of_kind(rendered("coordinator", "full"), "Ingress"):
        backends = [path["backend"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        assert [one["service"]["name"].endswith("-api") for one in backends] == [True]


@pytest.mark.parametrize(
    ("chart", "values", "setting", "said"),
    [
        (
            "coordinator",
            "minimal",
            "networkPolicy.databaseTo=null",
            "networkPolicy.databaseTo: say where the database is",
        ),
        ("coordinator", "full", "networkPolicy.s3To=null", "networkPolicy.s3To: say where S3 is"),
        ("coordinator", "full", "networkPolicy.oidcTo=null", "networkPolicy.oidcTo: say where the identity provider"),
        (
            "coordinator",
            "full",
            "networkPolicy.restFrom=null",
            "networkPolicy.restFrom: say where the Ingress controller",
        ),
        ("site-agent", "minimal", "networkPolicy.coordinatorTo=null", "networkPolicy.coordinatorTo: say where"),
        ("site-agent", "proxy", "networkPolicy.proxyTo=null", "networkPolicy.proxyTo: say where the proxy is"),
        ("site-agent", "kubernetes", "networkPolicy.kubernetesApiTo=null", "networkPolicy.kubernetesApiTo: say where"),
    ],
)
def test_who_forgets_an_address_is_told(chart: str, values: str, setting: str, said: str) -> None:
    done = template(chart, "--values", values_file(chart, values), "--set", setting)
    assert done.returncode != 0
    assert said in done.stderr
