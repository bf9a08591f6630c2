"""What Helm runs besides the release leaves nothing behind, and comes in the order in which it tells most."""

from __future__ import annotations

import pytest

from tests.support.charts import VALUE_SETS, Document, named, rendered

HOOK, WEIGHT, DELETED = "helm.sh/hook", "helm.sh/hook-weight", "helm.sh/hook-delete-policy"


def annotations_of(document: Document) -> dict[str, str]:
    return dict(document["metadata"].get("annotations") or {})


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_hook_that_succeeded_is_gone_since_uninstall_knows_no_hooks(chart: str, values: str) -> None:
    hooks = [one for one in rendered(chart, values) if HOOK in annotations_of(one)]
    assert hooks
    for hook in hooks:
        policies = annotations_of(hook)[DELETED].split(",")
        assert {"before-hook-creation", "hook-succeeded"} <= set(policies), hook["metadata"]["name"]


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_hooks_of_helm_test_are_pods_since_it_asks_each_for_logs(chart: str, values: str) -> None:
    tests = [one for one in rendered(chart, values) if annotations_of(one).get(HOOK) == "test"]
    assert {one["kind"] for one in tests} == {"Pod"}


def test_way_out_is_tried_before_what_fails_where_policies_are_not_enforced() -> None:
    documents = rendered("site-agent", "minimal")
    first, last = (named(documents, "Pod", f"-test-{name}") for name in ("way-out", "trainer-has-no-network"))
    assert int(annotations_of(first)[WEIGHT]) < int(annotations_of(last)[WEIGHT])


@pytest.mark.parametrize("values", [values for chart, values in VALUE_SETS if chart == "coordinator"])
@pytest.mark.parametrize("role", ["api", "gateway", "driver"])
def test_nobody_is_started_again_because_the_database_is_away(values: str, role: str) -> None:
    pod = named(rendered("coordinator", values), "Deployment", f"-{role}")["spec"]["template"]["spec"]
    probe = pod["containers"][0]["livenessProbe"]
    # /healthz and --loop ask nobody; /readyz and --live alone ask the database.
    is_alone = probe["httpGet"]["path"] == "/healthz" if "httpGet" in probe else "--loop" in probe["exec"]["command"]
    assert is_alone
