"""Which runner, and which inspector of data, a site's settings name. A composition, for the agent and its commands."""

from __future__ import annotations

import os
from typing import assert_never

from site_agent.datasets.inspector import Inspector, JobInspector, SubprocessInspector
from site_agent.errors import RunnerError
from site_agent.jobs.container_plan import ContainerLimits, ReadOnlyMount
from site_agent.jobs.docker_runner import DockerRunner, DockerRunnerOptions
from site_agent.jobs.kubernetes_manifest import ClaimMount
from site_agent.jobs.kubernetes_runner import NAMESPACE_FILE, KubernetesRunner, KubernetesRunnerOptions
from site_agent.jobs.process import ProcessRunner, ProcessRunnerOptions
from site_agent.jobs.runner import JobRunner
from site_agent.jobs.spool import SpoolRunner, SpoolRunnerOptions
from site_agent.settings import SiteSettings


def runner_of(settings: SiteSettings) -> JobRunner:
    """The runner that ``runner.kind`` names. It starts nothing before its first job.

    Raises:
        RunnerError: the settings name what this runner refuses; the advice says what to write.
    """
    runner = settings.runner
    match runner.kind:
        case "process":
            return ProcessRunner(
                ProcessRunnerOptions(
                    threads=runner.threads,
                    processes=None if runner.processes == "auto" else runner.processes,
                    environment=dict(os.environ),
                    jobs_dir=settings.jobs_dir,
                    idle_timeout_s=runner.idle_timeout_s,
                    checkpoint_every_s=runner.checkpoint_every_s,
                )
            )
        case "spool":
            return SpoolRunner(
                SpoolRunnerOptions(
                    jobs_dir=settings.jobs_dir,
                    idle_timeout_s=runner.idle_timeout_s,
                    absent_after_s=runner.absent_after_s,
                )
            )
        case "docker":
            return DockerRunner(_docker_options(settings))
        case "kubernetes":
            return KubernetesRunner(_kubernetes_options(settings))
        case other:
            assert_never(other)


def inspector_of(settings: SiteSettings) -> Inspector:
    """What looks at data files: whatever runs the jobs, since only that sees the data.

    Raises:
        RunnerError: as ``runner_of``.
    """
    if not settings.runner.is_trainer_elsewhere:
        return SubprocessInspector()
    return JobInspector(runner_of(settings), settings.jobs_dir)


def _docker_options(settings: SiteSettings) -> DockerRunnerOptions:
    runner = settings.runner
    if runner.engine is None:
        advice = "Write runner.engine, for example unix:///run/user/1000/docker.sock (a rootless engine's)."
        raise RunnerError("runner.kind is docker, and runner.engine names no engine", advice=advice)
    return DockerRunnerOptions(
        jobs_dir=settings.jobs_dir,
        jobs_source=runner.jobs_source or str(settings.jobs_dir),
        engine=runner.engine,
        image=runner.image or "",
        is_root_engine_allowed=runner.allow_root_socket,
        mounts=tuple(ReadOnlyMount(source=mount.source, target=mount.target) for mount in runner.mounts),
        limits=_limits(settings),
        user=runner.user,
        words=job_words(settings),
        runtime=runner.runtime,
        idle_timeout_s=runner.idle_timeout_s,
    )


def _kubernetes_options(settings: SiteSettings) -> KubernetesRunnerOptions:
    runner = settings.runner
    if runner.jobs_source is None:
        advice = "Write runner.jobs_source: the name of the volume claim that holds this agent's jobs folder."
        raise RunnerError("runner.kind is kubernetes, and runner.jobs_source names no claim", advice=advice)
    user, _, group = runner.user.partition(":")
    return KubernetesRunnerOptions(
        jobs_dir=settings.jobs_dir,
        jobs_claim=runner.jobs_source,
        namespace=runner.namespace or _own_namespace(),
        image=runner.image or "",
        kubeconfig=None if runner.engine is None else settings.folder.root / runner.engine,
        mounts=tuple(ClaimMount(claim=mount.source, target=mount.target) for mount in runner.mounts),
        limits=_limits(settings),
        user=int(user),
        group=int(group),
        service_account=runner.service_account,
        words=job_words(settings),
        node_selector=runner.node_selector,
        runtime_class=runner.runtime,
        idle_timeout_s=runner.idle_timeout_s,
        pending_timeout_s=runner.pending_timeout_s,
    )


def _own_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError as error:
        advice = "Write runner.namespace, or mount the service account's token into the agent's pod."
        raise RunnerError("this agent does not know the namespace that it runs in", advice=advice) from error


def _limits(settings: SiteSettings) -> ContainerLimits:
    runner = settings.runner
    gpus = -1 if runner.gpus == "all" else runner.gpus
    return ContainerLimits(memory_bytes=round(runner.memory_gb * 2**30), gpus=gpus)


def job_words(settings: SiteSettings) -> tuple[str, ...]:
    """What a trainer that does one job is told beside its folder."""
    runner = settings.runner
    processes = () if runner.processes == 1 else ("--processes", str(runner.processes))
    return ("--checkpoint-every-s", str(runner.checkpoint_every_s), *processes)
