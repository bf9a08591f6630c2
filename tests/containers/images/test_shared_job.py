"""A job on several processes in the trainer's image: read-only, and with no network but the loopback."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from site_agent.jobs.job_dir import BaseModelFolder, DataFile, read_job, write_job
from tests.containers.images.conftest import Docker
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_records

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

TAG = "wardround-test/trainer-cpu:shared-job"
COMPARE = (
    "import numpy as np; from safetensors.numpy import load_file; "
    "one, two = (load_file(f'/shared/jobs/run-a/{name}/payload.safetensors')['adapter_update'] for name in "
    "('1', '2')); "
    "print(np.linalg.norm(one - two) / np.linalg.norm(one))"
)


@pytest.fixture(scope="module")
def trainer(docker: Docker, build_images: ModuleType) -> str:
    build = build_images.build_now(wheels=build_images.wheels_folder(os.environ), use_cache=True, base=None)
    if build.wheels is None:
        pytest.skip("torch's wheel for CPUs is not at hand: set WARDROUND_WHEELS")
    docker(*build_images.command_of(build_images.IMAGES["trainer-cpu"], build, tag=TAG)[1:])
    return TAG


def make_jobs(folder: Path) -> None:
    """The same job twice, with the paths that the container has for what is mounted at ``/shared``."""
    make_tiny_model(folder / "model")
    records = write_records(folder / "records.jsonl", 40)
    for name in ("1", "2"):
        job_dir = folder / "jobs" / "run-a" / name
        make_job(job_dir, model_folder=folder / "model", records=records, local={"batch_size": 3, "steps": 4})
        job = read_job(job_dir)
        assert job.base_model is not None
        base = BaseModelFolder(path="/shared/model", sha256=job.base_model.sha256)
        write_job(job_dir, replace(job, base_model=base, data=DataFile(path="/shared/records.jsonl")))
    for path in (folder, *folder.rglob("*")):
        # The container's user is another than whoever runs this test.
        path.chmod(0o777 if path.is_dir() else 0o666)


def test_two_processes_do_a_job_without_a_network_on_a_read_only_root(
    docker: Docker, trainer: str, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    make_jobs(folder)
    hardened = ("--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    place = ("--tmpfs", "/tmp", "--volume", f"{folder}:/shared")
    for name in ("1", "2"):
        docker("run", "--rm", *hardened, *place, trainer, "run", f"/shared/jobs/run-a/{name}", "--processes", name)
        result = docker("run", "--rm", *hardened, *place, "--entrypoint", "cat", trainer,
                        f"/shared/jobs/run-a/{name}/result.json")  # fmt: skip
        assert json.loads(result)["status"] == "succeeded"
    # In bfloat16, where this machine multiplies it, the order of sums is felt.
    assert float(docker("run", "--rm", *hardened, *place, "--entrypoint", "python", trainer, "-c", COMPARE)) < 0.05
