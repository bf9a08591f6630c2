"""What the container tests share: an engine, the images of this checkout, a coordinator's stack."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.support.engine import Engine, EngineMissingError, find_engine
from tests.containers.support.stack import ROOT, Stack, project_name
from tests.containers.support.study import NAME, write_container_study

POSTGRES_IMAGE = "wardround-test/postgres:15"
AS_THEY_ARE = "WARDROUND_TEST_VERSION"
"""Names a tag whose images are tested as they are, instead of images that are built from this checkout."""

_PORTS = ("REST", "GATEWAY", "ENROLMENT", "GATEWAY_HTTP1", "ENROLMENT_HTTP1")
_BUILD_TIMEOUT_S = 1800.0


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine, or a skip that says why there is none."""
    try:
        return find_engine()
    except EngineMissingError as error:
        pytest.skip(f"no container engine: {error}")


@pytest.fixture(scope="session")
def images(engine: Engine) -> dict[str, str]:
    """The environment of compose in which every image is this checkout's, built now; unchanged layers are cached."""
    environment = {**engine.environment, "WARDROUND_TRAINER_TARGET": "cpu"}
    environment["WARDROUND_WHEELS"] = wheels_of_torch()
    environment.setdefault("WARDROUND_POSTGRES_IMAGE", POSTGRES_IMAGE)
    if os.environ.get(AS_THEY_ARE):
        return {**environment, "WARDROUND_VERSION": os.environ[AS_THEY_ARE]}
    began = time.monotonic()
    if environment["WARDROUND_POSTGRES_IMAGE"] == POSTGRES_IMAGE:
        _build(["docker", "build", "--quiet", "--tag", POSTGRES_IMAGE, "tests/containers/postgres"], environment)
    services = ("coordinator", "site-st-mary", "trainer-st-mary", "prepare")
    _build(["docker", "compose", "--profile", "demo", "build", "--quiet", *services], environment)
    print(f"\nimages of this checkout: {time.monotonic() - began:.0f} s, on {engine.origin}")
    return environment


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tiny study."""
    return write_container_study(tmp_path_factory.mktemp("study")).parent


MakeCoordinator = Callable[..., Stack]


@pytest.fixture(scope="module")
def make_coordinator(images: dict[str, str], study: Path) -> Iterator[MakeCoordinator]:
    """Describes a project of docker-compose.yml on free ports; it is removed at the end."""
    made: list[Stack] = []

    def make(label: str, *, profiles: tuple[str, ...] = (), **variables: str) -> Stack:
        ports = {
            f"WARDROUND_{name}_PORT": str(port) for name, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)
        }
        stack = Stack(
            name=project_name(label),
            files=(ROOT / "docker-compose.yml", ROOT / "tests" / "containers" / "tiny.compose.yml"),
            environment={
                **images,
                **ports,
                "WARDROUND_TEST_STUDY": str(study),
                "WARDROUND_DEMO_STUDY": f"/study/{NAME}",
                **variables,
            },
            profiles=profiles,
        )
        stack.down()
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.down()


def free_ports(n_ports: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(n_ports)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wheels_of_torch() -> str:
    """The folder that holds torch's wheel for CPUs; the test is skipped where nobody names one."""
    named = os.environ.get("WARDROUND_WHEELS")
    folders = [named] if named else os.environ.get("PIP_FIND_LINKS", "").split()
    found = next((folder for folder in folders if any(Path(folder).glob("torch-*+cpu-*.whl"))), None)
    if found is None:
        pytest.skip("torch's wheel for CPUs is not at hand: WARDROUND_WHEELS=DIR, as for make images")
    return found


def _build(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-6000:]}"
