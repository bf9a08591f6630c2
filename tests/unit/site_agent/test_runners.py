"""Which runner a site's settings give, and what they are refused for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from site_agent.datasets.inspector import JobInspector, SubprocessInspector
from site_agent.enrolment.templates import site_yaml
from site_agent.errors import ImageMismatchError, RunnerError
from site_agent.jobs.docker_runner import DockerRunner
from site_agent.jobs.kubernetes_runner import KubernetesRunner
from site_agent.jobs.process import ProcessRunner
from site_agent.jobs.spool import SpoolRunner
from site_agent.runners import inspector_of, job_words, runner_of
from site_agent.settings import RunnerSettings, SiteSettings
from site_agent.training.__main__ import build_parser

IMAGE = "registry.hospital.example/wardround/trainer@sha256:" + "ab" * 32
DOCKER = {"kind": "docker", "engine": "unix:///run/user/1000/docker.sock", "image": IMAGE}
KUBERNETES = {"kind": "kubernetes", "jobs_source": "jobs", "image": IMAGE, "namespace": "hospital"}


def settings_of(folder: Path, runner: Mapping[str, object]) -> SiteSettings:
    return SiteSettings.from_document(folder, {"runner": dict(runner)})


@pytest.mark.parametrize(
    ("runner", "kind"),
    [
        ({}, ProcessRunner),
        ({"kind": "spool"}, SpoolRunner),
        (DOCKER, DockerRunner),
        (KUBERNETES, KubernetesRunner),
    ],
)
def test_kind_names_the_runner(tmp_path: Path, runner: Mapping[str, object], kind: type) -> None:
    assert isinstance(runner_of(settings_of(tmp_path, runner)), kind)


def test_data_is_looked_at_by_whoever_sees_it(tmp_path: Path) -> None:
    assert isinstance(inspector_of(settings_of(tmp_path, {})), SubprocessInspector)
    for runner in ({"kind": "spool"}, DOCKER, KUBERNETES):
        assert isinstance(inspector_of(settings_of(tmp_path, runner)), JobInspector)


@pytest.mark.parametrize(
    ("runner", "missing"),
    [
        ({**DOCKER, "engine": None}, "runner.engine"),
        ({**DOCKER, "image": None}, "runner.image"),
        ({**DOCKER, "image": "trainer:latest"}, "runner.image"),
        ({**DOCKER, "mounts": [{"source": "/run/docker.sock", "target": "/x"}]}, "runner.mounts"),
        ({**KUBERNETES, "jobs_source": None}, "runner.jobs_source"),
        ({**KUBERNETES, "image": "sha256:" + "ab" * 32}, "runner.image"),
        ({**KUBERNETES, "namespace": None}, "runner.namespace"),
        ({**KUBERNETES, "user": "0:0"}, "runner.user"),
        ({**KUBERNETES, "gpus": "all"}, "runner.gpus"),
        ({**KUBERNETES, "mounts": [{"source": "/srv/data", "target": "/data"}]}, "runner.mounts"),
    ],
)
def test_what_is_missing_or_open_is_refused_by_its_key(
    tmp_path: Path, runner: Mapping[str, object], missing: str
) -> None:
    with pytest.raises((RunnerError, ImageMismatchError)) as refused:
        runner_of(settings_of(tmp_path, runner))
    assert missing in f"{refused.value} {refused.value.advice}"
    assert refused.value.advice


def test_jobs_folder_may_lie_elsewhere_and_private_states_never_lie_in_it(tmp_path: Path) -> None:
    assert settings_of(tmp_path, {}).jobs_dir == tmp_path / "jobs"
    elsewhere = settings_of(tmp_path, {"jobs_dir": "/var/lib/wardround/jobs"})
    assert elsewhere.jobs_dir == Path("/var/lib/wardround/jobs")
    assert not elsewhere.folder.private_states_dir.is_relative_to(settings_of(tmp_path, {}).jobs_dir)


def test_first_site_yaml_says_what_the_defaults_are() -> None:
    document = yaml.safe_load(site_yaml(site_id="alpha", gateway_address="gateway:1"))
    written = RunnerSettings.model_validate(document["runner"])
    assert written == RunnerSettings()


def test_job_of_several_processes_is_told_so(tmp_path: Path) -> None:
    assert "--processes" not in job_words(settings_of(tmp_path, DOCKER))
    assert job_words(settings_of(tmp_path, {**DOCKER, "processes": "auto"}))[-2:] == ("--processes", "auto")


@pytest.mark.parametrize(("processes", "expected"), [(1, 1), (4, 4), ("auto", None)])
def test_trainer_of_one_job_understands_in_how_many_processes_it_is_to_be_done(
    tmp_path: Path, processes: object, expected: int | None
) -> None:
    words = job_words(settings_of(tmp_path, {**DOCKER, "processes": processes}))
    parsed = build_parser().parse_args(["run", "jobs/run-a/0.0", *words])
    assert (parsed.processes, parsed.checkpoint_every_s) == (expected, 30.0)
