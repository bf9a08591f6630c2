"""The kubernetes runner beyond the contract, on the stand-in cluster: its Role, its GPUs, and what is left: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from site_agent.errors import EngineUnavailableError, GpuUnavailableError, ImageMismatchError, RunnerError
from site_agent.jobs.container_plan import ContainerLimits
from tests.contract.runners.conftest import Site, job_of, kubernetes_site, wait_until
from tests.support.kubernetes_api import Cluster

pytestmark = pytest.mark.containers


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with kubernetes_site(tmp_path) as made:
        yield made


@pytest.fixture
def cluster(site: Site) -> Cluster:
    assert site.cluster is not None
    return site.cluster


async def test_nothing_but_jobs_is_ever_asked_for(site: Site, cluster: Cluster) -> None:
    await site.run(site.job_dir("succeed"))
    runner = site.make()
    await runner.end_orphans()
    await runner.stop()
    places = {line.split()[1].rsplit("/jobs", 1)[0] for line in cluster.asked}
    assert places == {"/apis/batch/v1/namespaces/hospital"}
    assert {line.split()[0] for line in cluster.asked} == {"POST", "GET", "DELETE"}


@pytest.mark.parametrize("missing", ["create", "get"])
async def test_role_that_lacks_a_verb_is_told_as_advice(site: Site, cluster: Cluster, missing: str) -> None:
    cluster.verbs -= {missing}
    with pytest.raises(EngineUnavailableError) as refused:
        await site.run(site.job_dir("succeed"))
    assert refused.value.facts["status"] == 403
    assert "create, get, list, watch and delete of jobs.batch" in refused.value.advice
    cluster.verbs |= {missing}
    runner = site.make()
    await runner.end_orphans()
    await runner.stop()


async def test_cluster_that_does_not_answer_is_told_as_advice(site: Site, cluster: Cluster) -> None:
    cluster.is_up = False
    with pytest.raises(EngineUnavailableError):
        await site.run(site.job_dir("succeed"))


async def test_no_node_with_a_gpu_is_told_as_advice(site: Site) -> None:
    with pytest.raises(GpuUnavailableError) as absent:
        await site.run(site.job_dir("succeed"), limits=ContainerLimits(gpus=1), pending_timeout_s=0.5)
    assert "nvidia.com/gpu" in absent.value.advice
    assert "runner.gpus to 0" in absent.value.advice


async def test_image_that_no_node_finds_is_told_as_advice(site: Site) -> None:
    other = "registry.hospital.example/wardround/trainer@sha256:" + "00" * 32
    with pytest.raises(RunnerError) as pending:
        await site.run(site.job_dir("succeed"), image=other, pending_timeout_s=0.5)
    assert "the image is not there" in pending.value.advice


async def test_image_by_tag_is_refused(site: Site) -> None:
    with pytest.raises(ImageMismatchError):
        site.make(image="wardround/trainer:0.1.0-cpu")


async def test_pod_sees_its_run_and_no_other(site: Site) -> None:
    site.job_dir("succeed", run="run-b")
    at = ["/srv/wardround/jobs", "/srv/wardround/jobs/run-b", "/var/run/secrets"]
    folder = site.job_dir("look around", at=at, write=["/contract/new", "/srv/wardround/jobs/new"])
    await site.run(folder)
    around = json.loads((folder / "around.json").read_text())
    assert around == {"/srv/wardround/jobs": ["run-a"], "/srv/wardround/jobs/run-b": None, "/var/run/secrets": None}
    assert all(json.loads((folder / "writes.json").read_text()).values())


async def test_job_of_a_dead_agent_is_deleted_at_start(site: Site, cluster: Cluster) -> None:
    folder = site.job_dir("hang")
    dead = site.make()
    task = asyncio.create_task(dead.run_training_job(folder, job_of("0.0"), on_progress=lambda _: None))
    await asyncio.to_thread(wait_until, (folder / "child.pid").exists, "the job did not begin")
    started_again = site.make()
    await started_again.end_orphans()
    await started_again.stop()
    assert not cluster.jobs
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await dead.stop()
