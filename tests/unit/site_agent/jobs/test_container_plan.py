from __future__ import annotations

from dataclasses import replace

import pytest

from site_agent.errors import ImageMismatchError, RunnerError
from site_agent.jobs.container_plan import (
    ContainerLimits,
    ContainerPlan,
    ReadOnlyMount,
    check_image_found,
    check_image_name,
    check_image_of_run,
    gpu_error_of,
)
from site_agent.jobs.job_dir import DataFile, JobKind, JobSpec

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    "name", ["trainer", "trainer:latest", f"trainer:1@sha256:{DIGEST[:-1]}", "", f"sha256:{DIGEST} x"]
)
def test_image_that_is_not_named_by_digest_is_refused(name: str) -> None:
    with pytest.raises(ImageMismatchError):
        check_image_name(name)


@pytest.mark.parametrize("name", [f"sha256:{DIGEST}", f"registry.hospital:5000/wardround/trainer@sha256:{DIGEST}"])
def test_image_that_is_named_by_digest_is_taken(name: str) -> None:
    assert check_image_name(name) == name


def test_image_found_is_compared_by_id_or_by_its_registrys_digest() -> None:
    check_image_found(f"sha256:{DIGEST}", image_id=f"sha256:{DIGEST}", repo_digests=())
    check_image_found(f"t@sha256:{DIGEST}", image_id="sha256:cc", repo_digests=(f"other/t@sha256:{DIGEST}",))
    with pytest.raises(ImageMismatchError):
        check_image_found(f"sha256:{DIGEST}", image_id="sha256:cc", repo_digests=(f"t@sha256:{DIGEST}",))
    with pytest.raises(ImageMismatchError):
        check_image_found(f"t@sha256:{DIGEST}", image_id=f"sha256:{DIGEST}", repo_digests=())


def test_run_may_name_no_image_or_this_one() -> None:
    job = JobSpec(job_id="j", kind=JobKind.INSPECT, data=DataFile(path="x"), seed=0, timeout_s=1.0)
    image = f"t@sha256:{DIGEST}"
    check_image_of_run(image, job)
    check_image_of_run(image, replace(job, run_spec={"trainer": {"image_sha256": None}}))
    check_image_of_run(image, replace(job, run_spec={"trainer": {"image_sha256": DIGEST}}))
    with pytest.raises(ImageMismatchError):
        check_image_of_run(image, replace(job, run_spec={"trainer": {"image_sha256": "cd" * 32}}))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("data", "/data"),
        ("/data", "data"),
        ("/srv/../etc", "/data"),
        ("/", "/data"),
        ("/data", "/"),
        ("/var/run/docker.sock", "/engine"),
        ("/data", "/srv/wardround/jobs"),
        ("/data", "/srv/wardround"),
        ("/data", "/srv/wardround/jobs/run-a"),
        ("/data", "/opt/wardround/venv"),
    ],
)
def test_mount_that_opens_or_hides_something_is_refused(source: str, target: str) -> None:
    with pytest.raises(RunnerError):
        ReadOnlyMount(source=source, target=target)


def test_container_is_given_little() -> None:
    plan = ContainerPlan(
        image_id=f"sha256:{DIGEST}",
        words=("run", "/srv/wardround/jobs/run-a/0.0"),
        work_source="/var/lib/wardround/jobs/run-a",
        work_target="/srv/wardround/jobs/run-a",
        mounts=(ReadOnlyMount(source="/srv/data", target="/data"),),
        limits=ContainerLimits(memory_bytes=1 << 30, n_processes=99),
        user="10001:10001",
        labels={},
        environment={},
    )
    arguments = plan.to_create_arguments()
    assert arguments["network_mode"] == "none"
    assert arguments["read_only"] is True
    assert arguments["privileged"] is False
    assert arguments["cap_drop"] == ["ALL"]
    assert arguments["security_opt"] == ["no-new-privileges"]
    # No swap beside the memory.
    assert arguments["mem_limit"] == arguments["memswap_limit"] == 1 << 30
    assert arguments["pids_limit"] == 99
    assert arguments["user"] == "10001:10001"
    assert arguments["volumes"] == {
        "/srv/data": {"bind": "/data", "mode": "ro"},
        "/var/lib/wardround/jobs/run-a": {"bind": "/srv/wardround/jobs/run-a", "mode": "rw"},
    }


def test_engines_errors_about_gpus_are_known_and_others_are_not() -> None:
    assert gpu_error_of('could not select device driver "" with capabilities: [[gpu]]') == "no driver"
    assert gpu_error_of("Error: unknown or invalid runtime name: nvidia") == "no runtime"
    assert gpu_error_of("no space left on device") is None
