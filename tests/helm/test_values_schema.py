"""Values are closed: a key or a value that nobody meant is refused before anything is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support.charts import CHARTS, ROOT, script, template, values_file

# Objects whose keys are the operator's own to choose, or Kubernetes' own to judge.
FREE = {"strings", "quantities", "kubernetesObject"}
FREE_PATHS = {"config.oidc.role_map", "config.peers", "config.base_models"}


def objects_of(schema: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema of an object in a schema, with where it stands."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "properties" in schema:
        yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from objects_of(child, f"{path}.{name}".lstrip("."))
    for name, child in schema.get("definitions", {}).items():
        yield from objects_of(child, f"#{name}")
    if isinstance(schema.get("items"), dict):
        yield from objects_of(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from objects_of(schema["additionalProperties"], f"{path}.*")


@pytest.mark.parametrize("chart", CHARTS)
def test_schema_is_closed_at_all_levels(chart: str) -> None:
    schema = json.loads((ROOT / "helm" / chart / "values.schema.json").read_text())
    seen = 0
    for path, one in objects_of(schema):
        seen += 1
        if path.partition("#")[2] in FREE or path in FREE_PATHS:
            continue
        assert one["additionalProperties"] is False, path
    assert seen > 20


@pytest.mark.parametrize(
    ("chart", "setting"),
    [
        ("coordinator", "unknown=1"),
        ("coordinator", "api.replica=2"),
        ("coordinator", "api.autoscaling.max=2"),
        ("coordinator", "config.four_eyes=false"),
        ("coordinator", "config.governance.four_eye=false"),
        ("coordinator", "config.database.url=sqlite:///x"),
        ("coordinator", "config.rest.port=1"),
        ("coordinator", "config.log.level=loud"),
        ("coordinator", "config.oidc.role_map.students=dean"),
        ("coordinator", "config.identity.site_certificate_s=99999999"),
        ("coordinator", "database.url=postgresql+pg8000://wardround:secret@db/wardround"),
        ("coordinator", "database.poolSize=1"),
        ("coordinator", "image.digest=latest"),
        ("coordinator", "image.pullPolicy=Sometimes"),
        ("coordinator", "gateway.service.type=ExternalName"),
        ("coordinator", "keys.kind=values"),
        ("coordinator", "blobs.kind=nfs"),
        ("coordinator", "ingress.mode=plain"),
        ("coordinator", "metrics.port=99999"),
        ("coordinator", "networkPolicy.enabled=sometimes"),
        ("coordinator", "networkPolicy.restFrom[0].anyone=true"),
        ("coordinator", "api.resources.limit.memory=1Gi"),
        ("coordinator", "addresses.gateway=no-port"),
        ("site-agent", "unknown=1"),
        ("site-agent", "replicas=2"),
        ("site-agent", "agent.replicas=2"),
        ("site-agent", "ingress.enabled=true"),
        ("site-agent", "service.type=LoadBalancer"),
        ("site-agent", "config.runner.kind=process"),
        ("site-agent", "config.policy=/tmp/x"),
        ("site-agent", "config.runner.device=tpu"),
        ("site-agent", "runner.kind=process"),
        ("site-agent", "proxy.url=http://user:secret@proxy:3128"),
        ("site-agent", "trainer.gpus=-1"),
        ("site-agent", "data.readOnly=false"),
        ("site-agent", "networkPolicy.coordinatorTo[0].ipBlock.cidr=everywhere"),
    ],
)
def test_wrong_value_is_refused(chart: str, setting: str) -> None:
    done = template(chart, "--values", values_file(chart, "minimal"), "--set", setting)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert "secret@" not in done.stderr, "a password is not repeated"


@pytest.mark.parametrize(
    ("chart", "setting", "said"),
    [
        ("coordinator", "addresses.gateway=", "addresses.gateway: say host:port"),
        ("coordinator", "addresses.enrolment=", "addresses.enrolment: say host:port"),
        ("coordinator", "keys.existingSecret=", "keys.existingSecret: name the Secret"),
        ("coordinator", "database.url=", "database.url: say postgresql+pg8000://"),
        ("coordinator", "database.existingSecret=", "database.existingSecret: name the Secret"),
        ("coordinator", "blobs.kind=s3", "blobs.s3.bucket: name the bucket"),
        ("coordinator", "serviceAccount.create=false", "serviceAccount.name: name the ServiceAccount"),
        ("coordinator", "api.autoscaling.minReplicas=9", "api.autoscaling: minReplicas is above maxReplicas"),
        ("site-agent", "enrolment.coordinator=", "enrolment.coordinator: say host:port"),
        ("site-agent", "enrolment.existingSecret=", "enrolment.existingSecret: name the Secret"),
        ("site-agent", "data.existingClaim=", "data.existingClaim: name the claim"),
        ("site-agent", "models.existingClaim=", "models.existingClaim: name the claim"),
    ],
)
def test_what_is_missing_is_said(chart: str, setting: str, said: str) -> None:
    done = template(chart, "--values", values_file(chart, "minimal"), "--set", setting)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.image.digest=", "trainer.image.digest: say which image"),
        ("jobs.accessMode=ReadWriteOnce", "jobs.accessMode: with runner.kind kubernetes"),
        ("data.subPath=a", "data and models: with runner.kind kubernetes"),
        ("trainer.gpuResource=amd.com/gpu", "trainer: with runner.kind kubernetes"),
        ("trainer.resources.limits.memory=16000000000", "trainer.resources.limits.memory: with runner.kind kubernetes"),
    ],
)
def test_what_a_job_cannot_be_given_is_refused(setting: str, said: str) -> None:
    done = template("site-agent", "--values", values_file("site-agent", "kubernetes"), "--set", setting)
    assert done.returncode != 0
    assert said in done.stderr


def test_policy_is_given_once() -> None:
    done = template(
        "site-agent", "--values", values_file("site-agent", "gpu"), "--set", "policy.existingConfigMap=ours"
    )
    assert done.returncode != 0
    assert "policy: give text or existingConfigMap, not both" in done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_schema_and_table_are_those_of_the_values(chart: str) -> None:
    for path, text in script("generate_charts").generated(chart).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make docs`"


def test_key_without_a_comment_is_refused() -> None:
    charts = script("generate_charts")
    with pytest.raises(charts.ValuesInvalidError, match="needs a comment"):
        charts.Values("coordinator", "replicas: 1\n").schema()
    with pytest.raises(charts.ValuesInvalidError, match="@schema"):
        charts.Values("coordinator", "# -- what for\nnames: []\n").schema()


def test_schema_of_values_follows_their_comments() -> None:
    values = script("generate_charts").Values(
        "coordinator",
        '# -- How many\n# of them.\n# @schema {"minimum": 1}\nreplicas: 2\n'
        "section:\n  # -- Is it on?\n  enabled: false\n",
    )
    schema = values.schema()
    assert schema["properties"]["replicas"] == {"description": "How many of them.", "type": "integer", "minimum": 1}
    assert schema["properties"]["section"] == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"enabled": {"description": "Is it on?", "type": "boolean"}},
    }
    assert [(row.key, row.default) for row in values.rows] == [("replicas", "2"), ("section.enabled", "false")]
