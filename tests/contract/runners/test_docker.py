"""The docker runner beyond the contract: which image, which engine, which GPU, and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from site_agent.errors import (
    EngineUnavailableError,
    GpuUnavailableError,
    ImageMismatchError,
    JobFailedError,
    RunnerError,
)
from site_agent.jobs.container_plan import ContainerLimits, ReadOnlyMount
from site_agent.jobs.job_dir import DeviceChoice, JobResult, read_job
from tests.contract.runners.conftest import Site, docker_site, engine_address, job_of, trainer_image, wait_until
from tests.support.socket_proxy import socket_proxy
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_records

pytestmark = pytest.mark.containers


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with docker_site(tmp_path) as made:
        yield made


async def test_image_by_tag_is_refused(site: Site) -> None:
    with pytest.raises(ImageMismatchError) as refused:
        site.make(image="wardround/trainer:0.1.0-cpu")
    assert "NAME@sha256:DIGEST" in refused.value.advice


async def test_image_that_the_engine_does_not_have_is_said(site: Site) -> None:
    with pytest.raises(ImageMismatchError) as missing:
        await site.run(site.job_dir("succeed"), image="sha256:" + "ab" * 32)
    assert "docker load" in missing.value.advice
    with pytest.raises(ImageMismatchError):
        await site.run(site.job_dir("succeed", name="1.0"), image="wardround/trainer@sha256:" + "ab" * 32)


async def test_run_that_was_approved_for_another_image_is_not_trained(site: Site) -> None:
    folder = site.job_dir("succeed")
    runner = site.make()
    job = replace(job_of("0.0"), run_spec={"trainer": {"image_sha256": "cd" * 32}})
    with pytest.raises(ImageMismatchError) as refused:
        await runner.run_training_job(folder, job, on_progress=lambda _: None)
    await runner.stop()
    assert refused.value.facts["named"] == "cd" * 32
    assert not (folder / "starts").exists()


async def test_root_engine_is_refused_unless_the_settings_say_so(site: Site) -> None:
    with pytest.raises(RunnerError) as refused:
        await site.run(site.job_dir("succeed"), is_root_engine_allowed=False)
    assert refused.value.code == "runner-error"
    assert "allow_root_socket" in refused.value.advice


async def test_proxy_that_lets_little_through_is_enough(site: Site) -> None:
    with socket_proxy(engine_address()) as address:
        result = await site.run(site.job_dir("succeed"), engine=address, is_root_engine_allowed=False)
    assert result.records == 120


@pytest.mark.parametrize(
    "said",
    ['could not select device driver "" with capabilities: [[gpu]]', "unknown or invalid runtime name: nvidia"],
)
async def test_engine_without_a_gpu_is_told_as_advice(site: Site, said: str) -> None:
    # The engine's own two sentences; this machine's engine has a device that stands in for a GPU.
    with (
        socket_proxy(engine_address(), {"/start": (500, said)}) as address,
        pytest.raises(GpuUnavailableError) as absent,
    ):
        await site.run(site.job_dir("succeed"), engine=address, limits=ContainerLimits(gpus=-1, memory_bytes=256 << 20))
    assert "nvidia-ctk" in absent.value.advice


async def test_engine_that_is_not_there_is_told_as_advice(site: Site) -> None:
    with pytest.raises(EngineUnavailableError) as absent:
        await site.run(site.job_dir("succeed"), engine="unix:///nowhere/docker.sock")
    assert "runner.engine" in absent.value.advice


async def test_trainer_sees_its_run_and_its_data_and_no_other_run(site: Site, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    (data / "records.jsonl").write_text("{}\n")
    site.job_dir("succeed", run="run-b")
    at = ["/srv/wardround/jobs", "/srv/wardround/jobs/run-a", "/srv/wardround/jobs/run-b", "/data", "/var/run"]
    write = ["/data/new", "/srv/wardround/jobs/new", "/srv/wardround/jobs/run-a/new", "/contract/new", "/tmp/new"]
    folder = site.job_dir("look around", at=at, write=write)
    mounts = (
        ReadOnlyMount(source=str(Path(__file__).parent), target="/contract"),
        ReadOnlyMount(source=str(data), target="/data"),
    )
    await site.run(folder, mounts=mounts)
    around = json.loads((folder / "around.json").read_text())
    assert around["/srv/wardround/jobs"] == ["run-a"]
    assert around["/srv/wardround/jobs/run-b"] is None
    assert around["/data"] == ["records.jsonl"]
    assert "docker.sock" not in (around["/var/run"] or [])
    failures = json.loads((folder / "writes.json").read_text())
    assert {path for path, failure in failures.items() if not failure} == {"/srv/wardround/jobs/run-a/new", "/tmp/new"}


async def test_container_of_a_dead_agent_is_removed_at_start_and_another_sites_is_not(
    site: Site, tmp_path: Path
) -> None:
    folder = site.job_dir("hang")
    dead = site.make()
    task = asyncio.create_task(dead.run_training_job(folder, job_of("0.0"), on_progress=lambda _: None))
    await asyncio.to_thread(wait_until, (folder / "child.pid").exists, "the job did not begin")
    other = site.make(jobs_source=str(tmp_path / "another"))
    await other.end_orphans()
    await other.stop()
    assert site.is_at_work([])
    started_again = site.make()
    await started_again.end_orphans()
    await started_again.stop()
    assert not site.is_at_work([])
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, EngineUnavailableError):
        await task
    await dead.stop()


async def test_job_cancelled_while_its_container_is_asked_for_leaves_none(site: Site) -> None:
    runner = site.make()
    for wait_s in (0.0, 0.05, 0.2, 0.5):
        folder = site.job_dir("hang", name=f"{int(wait_s * 100)}.0")
        task = asyncio.create_task(runner.run_training_job(folder, job_of(folder.name), on_progress=lambda _: None))
        await asyncio.sleep(wait_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not site.is_at_work([])
    await runner.stop()


async def test_what_a_container_said_last_is_kept_for_the_sites_operator(site: Site) -> None:
    folder = site.job_dir("no such behaviour")
    (folder / "behaviour.json").write_text("no JSON")
    with pytest.raises(Exception, match=r"trainer\.log"):
        await site.run(folder, n_lives_in_vain=1)
    assert "JSONDecodeError" in (folder.parent / "trainer.log").read_text()


@pytest.mark.timeout(600)
async def test_tiny_model_is_trained_in_a_container_and_a_missing_gpu_is_said(site: Site, tmp_path: Path) -> None:
    model, records = tmp_path / "model", tmp_path / "data" / "records.jsonl"
    records.parent.mkdir()
    make_tiny_model(model)
    write_records(records, 40)
    # The folder that two users share by their group: the agent's files are this test's, the trainer is another user.
    site.jobs_dir.chmod(0o2770)
    os.chown(site.jobs_dir, 0, 10001)
    mounts = (
        ReadOnlyMount(source=str(model), target="/models/tiny"),
        ReadOnlyMount(source=str(records.parent), target="/data"),
    )
    for path in (model, records.parent, *model.rglob("*"), records):
        path.chmod(0o755 if path.is_dir() else 0o644)
    options = {"entrypoint": None, "mounts": mounts, "limits": ContainerLimits(memory_bytes=2 << 30)}
    runner = site.make(**options)
    for name, device in (("0.0", DeviceChoice.CPU), ("1.0", DeviceChoice.CUDA)):
        folder = site.jobs_dir / "run-a" / name
        make_job(folder, model_folder=model, records=records)
        made = read_job(folder)
        job = replace(
            made,
            device=device,
            timeout_s=240.0,
            data=replace(made.data, path="/data/records.jsonl"),
            base_model=replace(made.base_model, path="/models/tiny"),
        )
        for path in (folder.parent, folder, *folder.iterdir()):
            os.chown(path, 0, 10001)
            path.chmod(0o2770 if path.is_dir() else 0o660)
        if device is DeviceChoice.CPU:
            result = await runner.run_training_job(folder, job, on_progress=site.heard.append)
            assert isinstance(result, JobResult)
            assert result.records == 40
            assert (folder / "payload.safetensors").stat().st_uid == 10001
            assert max(line.step for line in site.heard if line.state == "training") == 3
        else:
            with pytest.raises(JobFailedError) as failed:
                await runner.run_training_job(folder, job, on_progress=site.heard.append)
            assert failed.value.failure_code == "device-unavailable"
            assert failed.value.advice
    await runner.stop()


def test_image_under_test_is_named_by_its_id() -> None:
    assert trainer_image().startswith("sha256:")
    with contextlib.closing(docker.from_env()) as client:
        assert client.images.get(trainer_image()).id == trainer_image()
