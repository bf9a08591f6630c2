"""What the built images are: small, blind, without root, and the same in two builds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.containers.conftest import wheels_of_torch
from tests.containers.images.conftest import NAMES, Docker, load_script

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

PROGRAMS = {"coordinator": "wardround-coordinator", "site-agent": "wardround-site", "trainer-cpu": "python"}


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest, images: dict[str, str]) -> tuple[str, str]:
    if request.param not in images:
        pytest.skip("torch's wheel for CPUs is not at hand: set WARDROUND_WHEELS")
    return request.param, images[request.param]


def inside(docker: Docker, tag: str, *command: str) -> str:
    """Run a command as an operator would run the program: read-only, without network, without any capability."""
    hardened = ("--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    return docker("run", "--rm", *hardened, "--tmpfs", "/tmp", "--entrypoint", command[0], tag, *command[1:])


def test_image_runs_as_our_user_and_owns_its_state_alone(docker: Docker, image: tuple[str, str]) -> None:
    _, tag = image
    assert inside(docker, tag, "sh", "-c", "id -u; id -g; stat -c '%u %g %a' /srv/wardround").splitlines() == [
        "10001",
        "10001",
        "10001 10001 700",
    ]


def test_image_cannot_install_software_or_become_another_user(docker: Docker, image: tuple[str, str]) -> None:
    _, tag = image
    found = inside(docker, tag, "sh", "-c", "command -v pip pip3 apt apt-get perl curl wget; true")
    assert found == ""
    assert inside(docker, tag, "sh", "-c", "find / -xdev -perm /6000 -type f 2>/dev/null; true") == ""


def test_image_root_is_nobodys_to_write(docker: Docker, image: tuple[str, str]) -> None:
    """Without --read-only, too: nothing but the state and the places for temporary files belongs to our user."""
    name, tag = image
    search = "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null; true"
    found = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", tag, "-c", search).splitlines()
    allowed = ("/srv/wardround", "/tmp", "/var/tmp", "/run/lock", "/proc", "/dev")
    # Empty folders that compose mounts volumes over: a new volume belongs to whom the folder of the image does.
    mounted_over = {"coordinator": ["/srv/handover", "/srv/secrets"]}.get(name, [])
    assert sorted(path for path in found if not path.startswith(allowed)) == mounted_over


def test_coordinator_is_small_and_neither_it_nor_the_agent_has_torch(docker: Docker, images: dict[str, str]) -> None:
    size = int(docker("image", "inspect", "--format", "{{.Size}}", images["coordinator"]))
    assert size < 300e6
    for name in ("coordinator", "site-agent"):
        missing = "import importlib.util as u; print([m for m in ('torch', 'transformers', 'peft') if u.find_spec(m)])"
        assert inside(docker, images[name], "python", "-c", missing) == "[]"


def test_trainer_imports_all_its_modules_without_network_and_has_no_way_out(
    docker: Docker, images: dict[str, str]
) -> None:
    if "trainer-cpu" not in images:
        pytest.skip("torch's wheel for CPUs is not at hand: set WARDROUND_WHEELS")
    program = (
        "import importlib, pkgutil, site_agent.training as t\n"
        "found = pkgutil.walk_packages(t.__path__, t.__name__ + '.')\n"
        "names = [m.name for m in found if not m.name.endswith('__main__')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))\n"
    )
    assert int(inside(docker, images["trainer-cpu"], "python", "-c", program)) > 50
    absent = "import importlib.util as u; print([m for m in ('grpc', 'cryptography', 'sqlalchemy') if u.find_spec(m)])"
    assert inside(docker, images["trainer-cpu"], "python", "-c", absent) == "[]"


def test_image_says_what_it_is_and_how_its_health_is_asked(docker: Docker, image: tuple[str, str]) -> None:
    _, tag = image
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", tag))
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.title"].startswith("Wardround ")
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert {"doctor", "--live"} <= set(config["Healthcheck"]["Test"])
    assert not [variable for variable in config["Env"] if variable.startswith(("PIP_", "SSL_", "HTTP", "http"))]


def test_image_lists_every_package_that_it_holds(docker: Docker, image: tuple[str, str]) -> None:
    _, tag = image
    document = json.loads(inside(docker, tag, "cat", "/usr/share/wardround/sbom.cdx.json"))
    listed = {
        kind: {
            (component["name"].lower().replace("_", "-").replace(".", "-"), component["version"])
            for component in document["components"]
            if component["purl"].startswith(f"pkg:{kind}/")
        }
        for kind in ("pypi", "deb")
    }
    program = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'], d.version)"
    installed = {tuple(line.split()) for line in inside(docker, tag, "python", "-c", program).splitlines()}
    assert {(name.lower().replace("_", "-").replace(".", "-"), version) for name, version in installed} == listed[
        "pypi"
    ]
    packages = inside(
        docker, tag, "dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version}\n"
    )
    rows = [line.split() for line in packages.splitlines()]
    assert {version for status, _, version in rows if status == "installed"} == {
        version for _, version in listed["deb"]
    }


def test_coordinator_is_made_and_becomes_healthy_on_a_read_only_root(docker: Docker, images: dict[str, str]) -> None:
    volume = docker("volume", "create", "wardround-test-images-state")
    hardened = ("--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp", "--network", "none")
    mounted = (*hardened, "--volume", f"{volume}:/srv/wardround")
    container = None
    try:
        docker("run", "--rm", *mounted, images["coordinator"], "init", "/srv/wardround")
        healthy_soon = ("--health-interval", "2s", "--health-start-period", "60s")
        container = docker("run", "--detach", *mounted, *healthy_soon, images["coordinator"])
        health = ""
        for _ in range(60):
            health = docker("inspect", "--format", "{{.State.Health.Status}}", container)
            if health != "starting":
                break
            time.sleep(1)
        assert health == "healthy", docker("logs", container)
    finally:
        if container is not None:
            docker("rm", "--force", container)
        docker("volume", "rm", volume)


@pytest.fixture
def twice(docker: Docker, build_images: ModuleType, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Two builds of this checkout; in the second no layer of an earlier one counts."""
    tags = [f"wardround-test/{request.param}:{which}" for which in ("once", "again")]
    wheels = Path(wheels_of_torch()) if request.param.startswith("trainer") else None
    for tag, use_cache in zip(tags, (True, False), strict=True):
        build = build_images.build_now(wheels=wheels, use_cache=use_cache, base=None)
        docker(*build_images.command_of(build_images.IMAGES[request.param], build, tag=tag)[1:])
    yield tags
    docker("image", "rm", *tags)


@pytest.mark.parametrize("twice", NAMES, indirect=True)
def test_two_builds_add_the_same_files(docker: Docker, twice: list[str], tmp_path: Path) -> None:
    script = load_script("scripts/compare_images.py")
    saved = [tmp_path / "once.tar", tmp_path / "again.tar"]
    for tag, path in zip(twice, saved, strict=True):
        docker("save", "--output", str(path), tag)
        assert path.stat().st_size > 50e6
    found = script.compare(*(script.layers_of(path) for path in saved))
    print(f"{twice[0]}: {found.n_same} paths are the same; of the base differ: {found.differing_in_base}")
    assert found.differing == ()
    assert found.n_same > 1000
