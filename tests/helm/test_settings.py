"""What the charts write as configuration is what the programs read: by their own loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from coordinator.settings import BlobKind, CoordinatorSettings
from coordinator.settings import load_settings as load_coordinator
from site_agent.enrolment.templates import POLICY_YAML
from site_agent.jobs.kubernetes_runner import KubernetesRunner
from site_agent.jobs.spool import SpoolRunner
from site_agent.policy.rules import ApprovalMode, Permission
from site_agent.policy_file import load_policy
from site_agent.runners import runner_of
from site_agent.settings import SiteSettings
from site_agent.settings import load_settings as load_site
from tests.support.charts import ROOT, VALUE_SETS, Document, named, rendered

COORDINATOR_SETS = [values for chart, values in VALUE_SETS if chart == "coordinator"]
SITE_SETS = [values for chart, values in VALUE_SETS if chart == "site-agent"]


def coordinator_settings(folder: Path, values: str, *settings: str) -> CoordinatorSettings:
    file = folder / "coordinator.yaml"
    file.write_text(
        named(rendered("coordinator", values, *settings), "ConfigMap", "wr-wardround-coordinator")["data"][file.name]
    )
    return load_coordinator(file)


def site_settings(folder: Path, values: str, *settings: str) -> SiteSettings:
    documents = rendered("site-agent", values, *settings)
    (folder / "site.yaml").write_text(named(documents, "ConfigMap", "wr-wardround-site-agent")["data"]["site.yaml"])
    return load_site(folder)


@pytest.mark.parametrize("values", COORDINATOR_SETS)
def test_coordinator_reads_what_is_rendered(tmp_path: Path, values: str) -> None:
    settings = coordinator_settings(tmp_path, values)
    listeners = (settings.rest, settings.gateway, settings.enrolment)
    assert [one.host for one in listeners] == ["0.0.0.0"] * 3
    assert [one.port for one in listeners] == [8443, 8444, 8445]
    assert settings.database.url.startswith("postgresql+pg8000://")
    assert settings.governance.four_eyes
    assert settings.governance.dual_signature


@pytest.mark.parametrize("values", COORDINATOR_SETS)
def test_hook_reads_the_same_configuration(values: str) -> None:
    documents = rendered("coordinator", values)
    assert (
        named(documents, "ConfigMap", "-migrate")["data"]
        == named(documents, "ConfigMap", "wr-wardround-coordinator")["data"]
    )


def test_values_reach_the_coordinators_settings(tmp_path: Path) -> None:
    settings = coordinator_settings(tmp_path, "full")
    assert settings.consortium == "Rare disease network"
    assert settings.database.pool_size == 24
    assert settings.database.root_file == Path("trust/database.pem")
    assert settings.blobs.kind is BlobKind.S3
    assert settings.blobs.s3.prefix == "study-7/"
    # Helm reads numbers as floating point: a large one must come out whole.
    assert settings.blobs.max_bytes == 8589934592
    assert settings.gateway.advertise == "sites.example.org:443"
    assert settings.gateway.http1_advertise == "sites.example.org:8446"
    assert settings.enrolment.advertise == "enrol.example.org:443"
    assert {"fl.example.org", "203.0.113.7", "wr-wardround-coordinator-api.fl.svc"} <= set(settings.rest.names)
    assert settings.oidc.role_map == {"study-leads": "study-lead", "study-dpo": "privacy-officer"}


def test_second_transport_is_turned_off_or_advertised(tmp_path: Path) -> None:
    off = coordinator_settings(tmp_path, "external-database")
    assert off.gateway.http1_port is None
    assert off.enrolment.http1_port is None
    on = coordinator_settings(tmp_path, "minimal")
    assert on.gateway.http1_advertise == "fl.example.org:8446"


def test_ingress_host_is_in_the_certificate(tmp_path: Path) -> None:
    assert "fl.example.org" in coordinator_settings(tmp_path, "external-database").rest.names


def paths_of(documents: tuple[Document, ...], suffix: str) -> set[str]:
    spec = named(documents, "Deployment", suffix)["spec"]["template"]["spec"]
    return {mount["mountPath"] for container in spec["containers"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("values", COORDINATOR_SETS)
def test_files_that_the_settings_name_are_mounted(tmp_path: Path, values: str) -> None:
    settings = coordinator_settings(tmp_path, values)
    mounts = paths_of(rendered("coordinator", values), "-api")
    state = Path("/srv/wardround")
    named_files = [settings.database.password_file, settings.database.root_file, settings.oidc.ca_file]
    named_files += [settings.blobs.s3.ca_file, settings.blobs.s3.credentials_file, settings.keys.directory]
    if settings.blobs.kind is BlobKind.FOLDER:
        named_files.append(settings.blobs.directory)
    for path in (state / file for file in named_files if file is not None):
        assert any(path.is_relative_to(mount) for mount in mounts if mount != str(state)), path


@pytest.mark.parametrize("values", SITE_SETS)
def test_site_reads_what_is_rendered(tmp_path: Path, values: str) -> None:
    settings = site_settings(tmp_path, values)
    assert settings.coordinator.enrolment_address == "fl.example.org:8445"
    # Enrolment tells where the gateway is.
    assert settings.coordinator.address is None
    assert settings.policy_path == Path("/etc/wardround/policy/policy.yaml")
    assert settings.runner.kind == ("kubernetes" if values == "kubernetes" else "spool")


def test_values_reach_the_sites_settings(tmp_path: Path) -> None:
    gpu = site_settings(tmp_path, "gpu")
    assert gpu.runner.device == "cuda"
    assert gpu.runner.idle_timeout_s == 3600
    assert set(gpu.peers) == {"charite"}
    assert gpu.base_model_path("smollm2-135m-instruct") == Path("/models/smollm2-135m-instruct")
    proxied = site_settings(tmp_path, "proxy")
    assert proxied.coordinator.proxy == "http://proxy.hospital.example:3128"
    assert proxied.proxy_credentials_path == Path("/run/wardround/proxy.credentials")


def test_jobs_are_made_of_the_charts_values() -> None:
    text = named(rendered("site-agent", "kubernetes"), "ConfigMap", "wr-wardround-site-agent")["data"]["site.yaml"]
    assert yaml.safe_load(text)["runner"] == {
        "kind": "kubernetes",
        "namespace": "fl",
        "image": "wardround/trainer@sha256:" + "0123456789abcdef" * 4,
        "gpus": 1,
        "memory_gb": 16,
        "jobs_source": "wr-wardround-site-agent-jobs",
        "mounts": [{"source": "hospital-data", "target": "/data"}, {"source": "base-models", "target": "/models"}],
        "service_account": "wr-wardround-site-agent-trainer",
        "node_selector": {"nvidia.com/gpu.present": "true"},
        "runtime": "nvidia",
    }


def test_runner_takes_what_the_chart_says(tmp_path: Path) -> None:
    # It judges image, mounts, user and bounds when it is made.
    assert isinstance(runner_of(site_settings(tmp_path, "kubernetes")), KubernetesRunner)
    assert isinstance(runner_of(site_settings(tmp_path, "minimal")), SpoolRunner)


def test_policy_permits_nothing_until_the_hospital_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(named(rendered("site-agent", "minimal"), "ConfigMap", "-policy")["data"]["policy.yaml"])
    policy = load_policy(file)
    permitted = (
        policy.tasks,
        policy.base_models,
        policy.adapters.kinds,
        policy.datasets,
        policy.egress.max_bytes_per_round,
    )
    assert not any(permitted)
    assert policy.approval is ApprovalMode.MANUAL
    assert policy.privacy.without_dp is Permission.DENIED
    assert (ROOT / "helm" / "site-agent" / "files" / "policy.yaml").read_text() == POLICY_YAML


def test_policy_is_the_hospitals_own(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(named(rendered("site-agent", "gpu"), "ConfigMap", "-policy")["data"]["policy.yaml"])
    policy = load_policy(file)
    assert policy.tasks == {"instruction-tuning"}
    assert policy.adapters.max_rank == 16
    assert policy.approval is ApprovalMode.MANUAL
    documents = rendered("site-agent", "minimal", "policy.existingConfigMap=ours")
    assert not [one for one in documents if one["metadata"]["name"].endswith("-policy")]


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_versions_are_this_projects(chart: str, values: str) -> None:
    meta = yaml.safe_load((ROOT / "helm" / chart / "Chart.yaml").read_text())
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{meta["appVersion"]}"' in text
    assert meta["version"] == meta["appVersion"]
