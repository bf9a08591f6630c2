"""What the charts ask of the cluster's API: nothing beyond their namespace, and of it Jobs at most."""

from __future__ import annotations

import pytest

from tests.support.charts import VALUE_SETS, named, of_kind, pods, rendered


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_no_object_is_the_clusters(chart: str, values: str) -> None:
    for document in rendered(chart, values):
        assert not document["kind"].startswith("Cluster")
        assert document["kind"] not in {"CustomResourceDefinition", "Namespace", "PriorityClass", "StorageClass"}
        assert document["metadata"]["namespace"] == "fl", document["metadata"]["name"]


@pytest.mark.parametrize(("chart", "values"), [pair for pair in VALUE_SETS if pair[1] != "kubernetes"])
def test_no_rights_are_asked_for_where_no_jobs_are_made(chart: str, values: str) -> None:
    documents = rendered(chart, values)
    assert of_kind(documents, "Role") == []
    assert of_kind(documents, "RoleBinding") == []


def test_agent_that_makes_jobs_may_do_that_and_nothing_else() -> None:
    documents = rendered("site-agent", "kubernetes")
    (role,) = of_kind(documents, "Role")
    (rule,) = role["rules"]
    assert rule["apiGroups"] == ["batch"]
    assert rule["resources"] == ["jobs"]
    assert sorted(rule["verbs"]) == ["create", "delete", "get", "list", "watch"]
    (binding,) = of_kind(documents, "RoleBinding")
    assert binding["roleRef"]["kind"] == "Role"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (agent,) = (pod for name, pod in pods(documents) if name.endswith("-agent"))
    assert [one["name"] for one in binding["subjects"]] == [agent["spec"]["serviceAccountName"]]
    named(documents, "ServiceAccount", agent["spec"]["serviceAccountName"])


def test_trainers_have_an_account_without_rights() -> None:
    documents = rendered("site-agent", "minimal")
    (agent,) = (pod for name, pod in pods(documents) if name.endswith("-agent"))
    (trainer,) = (pod for name, pod in pods(documents) if name.endswith("-trainer"))
    assert trainer["spec"]["serviceAccountName"] != agent["spec"]["serviceAccountName"]
    named(documents, "ServiceAccount", trainer["spec"]["serviceAccountName"])
