"""The runners under one contract: each is started as an agent starts it, with a trainer that does as a file says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from docker.errors import ImageNotFound

from site_agent.jobs.container_plan import LABEL_JOBS, ContainerLimits, ReadOnlyMount
from site_agent.jobs.docker_runner import DockerRunner, DockerRunnerOptions
from site_agent.jobs.job_dir import DataFile, DeviceChoice, JobKind, JobSpec, ProgressLine
from site_agent.jobs.kubernetes_manifest import ClaimMount
from site_agent.jobs.kubernetes_runner import KubernetesRunner, KubernetesRunnerOptions
from site_agent.jobs.process import ProcessRunner, ProcessRunnerOptions
from site_agent.jobs.runner import JobRunner
from site_agent.jobs.spool import SpoolRunner, SpoolRunnerOptions
from tests.containers.support.engine import EngineMissingError, find_engine
from tests.contract.runners.applying import ENGINE_RUNNERS, RUNNERS
from tests.support.kubernetes_api import Cluster, cluster_api

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BEHAVING = (sys.executable, str(HERE / "behaving_trainer.py"))
PATIENCE_S = 60.0


@dataclass(kw_only=True)
class Site:
    """A jobs folder, and a runner on it."""

    kind: str
    jobs_dir: Path
    make: Callable[..., JobRunner]
    heard: list[ProgressLine] = field(default_factory=list)
    is_without_network: bool = True
    has_memory_limit: bool = False
    hang_timeout_s: float = 4.0
    cluster: Cluster | None = None
    is_at_work: Callable[[list[int]], bool] = lambda numbers: any(is_alive(number) for number in numbers)

    def job_dir(self, behaviour: str, *, name: str = "0.0", run: str = "run-a", **more: object) -> Path:
        """A job's folder, as the agent fills it, and what the trainer is to do in it."""
        folder = self.jobs_dir / run / name
        folder.mkdir(parents=True)
        (folder / "behaviour.json").write_text(json.dumps({"do": behaviour, **more}))
        # A container's user is another one than this test's.
        for path in (self.jobs_dir, folder.parent, folder):
            path.chmod(0o777)
        return folder

    async def run(self, job_dir: Path, *, timeout_s: float = PATIENCE_S, **options: object) -> Any:
        """Run the job of a folder to its end."""
        runner = self.make(**options)
        try:
            return await runner.run_training_job(
                job_dir, job_of(job_dir.name, timeout_s=timeout_s), on_progress=self.heard.append
            )
        finally:
            await runner.stop()


def job_of(name: str, *, timeout_s: float = PATIENCE_S) -> JobSpec:
    # Of the kinds of jobs, the one that names no model; the behaving trainer does not look.
    return JobSpec(
        job_id=name,
        kind=JobKind.INSPECT,
        data=DataFile(path="/data/records.jsonl"),
        seed=7,
        timeout_s=timeout_s,
        device=DeviceChoice.CPU,
    )


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.containers] if name in ENGINE_RUNNERS else [], id=name)
        for name in RUNNERS
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """One site for each runner."""
    with SITES[request.param](tmp_path) as made:
        yield made


@contextlib.contextmanager
def process_site(folder: Path) -> Iterator[Site]:
    jobs = folder / "jobs"
    jobs.mkdir()

    def make(**options: Any) -> ProcessRunner:
        environment = {"PATH": os.environ["PATH"], "HF_TOKEN": "secret"}
        return ProcessRunner(
            ProcessRunnerOptions(
                **{"command": BEHAVING, "environment": environment, "jobs_dir": jobs, "restart_wait_s": 0.01, **options}
            )
        )

    yield Site(kind="process", jobs_dir=jobs, make=make, is_without_network=False)


@contextlib.contextmanager
def spool_site(folder: Path) -> Iterator[Site]:
    jobs = folder / "jobs"
    jobs.mkdir()
    apart = ("unshare", "--net") if can_unshare() else ()
    with overseer(jobs, apart=apart):

        def make(**options: Any) -> SpoolRunner:
            return SpoolRunner(SpoolRunnerOptions(**{"jobs_dir": jobs, "absent_after_s": PATIENCE_S, **options}))

        yield Site(kind="spool", jobs_dir=jobs, make=make, is_without_network=bool(apart))


@contextlib.contextmanager
def overseer(
    jobs: Path, *, apart: tuple[str, ...] = (), program: tuple[str, ...] = BEHAVING
) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer that serves the jobs folder, in a network namespace of its own where that can be had."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "secret", "https_proxy": "http://proxy"}
    words = [*apart, sys.executable, str(HERE / "overseer.py"), str(jobs), *program]
    with (jobs.parent / "trainer.log").open("ab") as said:
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def can_unshare() -> bool:
    """Whether this test may give a process a network of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """A server on this machine that whoever has its network can reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def accept() -> None:
            server.settimeout(0.2)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield ("127.0.0.1", server.getsockname()[1])
        ended.set()
        thread.join()


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_alive(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engine_address() -> str:
    """Where the container engine answers; the cases are passed over where there is none."""
    try:
        found = find_engine()
    except EngineMissingError as error:
        pytest.skip(f"no container engine: {error}")
    address = found.environment.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    # For the SDK, which the stand-ins here call without a word.
    os.environ["DOCKER_HOST"] = address
    return address


def trainer_image() -> str:
    """The id of the trainer's image for CPUs, as 'make images' made it; the case is passed over where there is none."""
    name = os.environ.get("WARDROUND_TRAINER_IMAGE", f"wardround/trainer:{version('wardround')}-cpu")
    engine_address()
    client = docker.from_env()
    with contextlib.closing(client):
        try:
            return str(client.images.get(name).id)
        except ImageNotFound:
            pytest.skip(f"the engine has no {name}; run 'make images'")


@contextlib.contextmanager
def docker_site(folder: Path) -> Iterator[Site]:
    image, jobs = trainer_image(), folder / "jobs"
    jobs.mkdir()
    # The engine has to enter it as the container's user.
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)

    def make(**options: Any) -> DockerRunner:
        given: dict[str, Any] = {
            "jobs_dir": jobs,
            "jobs_source": str(jobs),
            "engine": engine_address(),
            "image": image,
            "is_root_engine_allowed": True,
            "mounts": (ReadOnlyMount(source=str(HERE), target="/contract"),),
            "limits": ContainerLimits(memory_bytes=256 << 20),
            "entrypoint": ("python", "/contract/behaving_trainer.py"),
            "restart_wait_s": 0.01,
        }
        return DockerRunner(DockerRunnerOptions(**{**given, **options}))

    def is_at_work(_: list[int]) -> bool:
        with contextlib.closing(docker.from_env()) as client:
            label = DockerRunnerOptions(jobs_dir=jobs, jobs_source=str(jobs), engine="", image="").label
            return bool(client.containers.list(all=True, filters={"label": f"{LABEL_JOBS}={label}"}))

    yield Site(
        kind="docker", jobs_dir=jobs, make=make, has_memory_limit=True, hang_timeout_s=10.0, is_at_work=is_at_work
    )
    assert not is_at_work([]), "a container is left"


@contextlib.contextmanager
def spool_container_site(folder: Path) -> Iterator[Site]:
    """The overseer of this working copy in a container of the trainer's image, as deploy/compose/site.yml starts it."""
    image, jobs = trainer_image(), folder / "jobs"
    jobs.mkdir()
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    jobs.chmod(0o777)
    with contextlib.closing(docker.from_env()) as engine:
        trainer = engine.containers.run(
            image,
            entrypoint=[
                "python",
                "/contract/overseer.py",
                "/srv/wardround/jobs",
                "python",
                "/contract/behaving_trainer.py",
            ],
            command=[],
            name=f"runners-contract-{os.getpid()}-{jobs.stat().st_ino}",
            detach=True,
            network_mode="none",
            read_only=True,
            tmpfs={"/tmp": "size=16m"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            user="10001:10001",
            mem_limit=256 << 20,
            memswap_limit=256 << 20,
            environment={"PYTHONPATH": "/product", "HF_TOKEN": "secret", "https_proxy": "http://proxy"},
            volumes={
                str(jobs): {"bind": "/srv/wardround/jobs", "mode": "rw"},
                str(HERE): {"bind": "/contract", "mode": "ro"},
                # The image's own copy may be of another commit than this test.
                str(ROOT / "site_agent"): {"bind": "/product/site_agent", "mode": "ro"},
                str(ROOT / "fl_protocol"): {"bind": "/product/fl_protocol", "mode": "ro"},
            },
        )

        def make(**options: Any) -> SpoolRunner:
            return SpoolRunner(SpoolRunnerOptions(**{"jobs_dir": jobs, "absent_after_s": PATIENCE_S, **options}))

        def is_at_work(_: list[int]) -> bool:
            return any("time.sleep(600)" in " ".join(line) for line in trainer.top()["Processes"])

        try:
            yield Site(
                kind="spool in a container",
                jobs_dir=jobs,
                make=make,
                has_memory_limit=True,
                hang_timeout_s=8.0,
                is_at_work=is_at_work,
            )
        finally:
            trainer.remove(force=True)


IMAGE_BY_DIGEST = "registry.hospital.example/wardround/trainer@sha256:" + "5e" * 32


@contextlib.contextmanager
def kubernetes_site(folder: Path) -> Iterator[Site]:
    """The stand-in cluster of ``tests.support.kubernetes_api``, whose pods are containers of the engine here."""
    image, jobs = trainer_image(), folder / "jobs"
    jobs.mkdir()
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    cluster = Cluster(
        namespace="hospital", claims={"wardround-jobs": jobs, "contract": HERE}, images={IMAGE_BY_DIGEST: image}
    )
    with cluster_api(cluster, folder) as kubeconfig:

        def make(**options: Any) -> KubernetesRunner:
            given: dict[str, Any] = {
                "jobs_dir": jobs,
                "jobs_claim": "wardround-jobs",
                "namespace": "hospital",
                "image": IMAGE_BY_DIGEST,
                "kubeconfig": kubeconfig,
                "mounts": (ClaimMount(claim="contract", target="/contract"),),
                "limits": ContainerLimits(memory_bytes=256 << 20),
                "command": ("python", "/contract/behaving_trainer.py"),
                "restart_wait_s": 0.01,
                "look_every_s": 0.1,
            }
            return KubernetesRunner(KubernetesRunnerOptions(**{**given, **options}))

        yield Site(
            kind="kubernetes",
            jobs_dir=jobs,
            make=make,
            has_memory_limit=True,
            hang_timeout_s=10.0,
            is_at_work=lambda _: bool(cluster.jobs),
            cluster=cluster,
        )
        assert not cluster.jobs, "a Job is left"


SITES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Site]]] = {
    "process": process_site,
    "spool": spool_site,
    "spool in a container": spool_container_site,
    "docker": docker_site,
    "kubernetes": kubernetes_site,
}
