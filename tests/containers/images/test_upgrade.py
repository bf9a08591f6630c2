"""A coordinator in containers: of an older commit, migrated beneath it by today's image, replaced, and put back."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.containers.images.conftest import ROOT, Docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

VERSIONS = "coordinator/db/migrations/versions"
BEFORE = "wardround-test/coordinator:before"
CONFIG = "/srv/wardround/state/coordinator.yaml"
# Asks the program itself: images of before have no `doctor --live`.
READY = (
    "import ssl, urllib.request as u\n"
    "c = ssl.create_default_context(cafile='/srv/wardround/state/root.pem')\n"
    "print(u.urlopen('https://localhost:8443/readyz', context=c, timeout=5).status)\n"
)


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def commit_before_the_newest_migration() -> str:
    """The last commit whose database is older than today's."""
    newest = max(path.name for path in (ROOT / VERSIONS).glob("[0-9]*.py"))
    # A migration may have come by a merge, where it got its number.
    added = git("log", "--format=%H", "--", f"{VERSIONS}/{newest}").decode().split()
    if not added:
        pytest.skip("this checkout has no history: fetch it whole")
    before = git("rev-parse", f"{added[-1]}^").decode().strip()
    listed = git("ls-tree", "--name-only", before, f"{VERSIONS}/").decode()
    assert newest not in listed
    return before


@pytest.fixture(scope="module")
def today(
    docker: Docker, build_images: ModuleType, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Today's image; that of the commit of before is built by today's Dockerfile."""
    before = commit_before_the_newest_migration()
    build = build_images.build_now(wheels=None, use_cache=True, base=None)
    image = build_images.IMAGES["coordinator"]
    source = tmp_path_factory.mktemp("before")
    packages = ("LICENSE", "README.md", "pyproject.toml", "fl_protocol", "coordinator", "site_agent", "wardround")
    for commit, paths in ((before, packages), ("HEAD", ("deploy/docker", "deploy/scripts", ".dockerignore"))):
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, *paths))) as archive:
            archive.extractall(source, filter="data")
    command = build_images.command_of(image, build, tag=BEFORE)
    docker(*command[1:-1], "--file", str(source / "deploy/docker/coordinator.Dockerfile"), str(source))
    yield images["coordinator"]
    docker("image", "rm", BEFORE)


@pytest.fixture
def volume(docker: Docker) -> Iterator[str]:
    name = docker("volume", "create", "wardround-test-upgrade-state")
    yield name
    docker("volume", "rm", name)


def schema_of(docker: Docker, volume: str, today: str) -> str:
    """The newest migration that the database has had, read with the driver and not with the program."""
    read = (
        "import sqlite3, glob\n"
        "[path] = glob.glob('/srv/wardround/state/*.db')\n"
        "print(sqlite3.connect(path).execute('SELECT version_num FROM alembic_version').fetchone()[0])\n"
    )
    mounted = ("--network", "none", "--volume", f"{volume}:/srv/wardround", "--entrypoint", "python")
    return docker("run", "--rm", *mounted, today, "-c", read)


class Serving:
    """A coordinator that serves from the volume until the block ends."""

    def __init__(self, docker: Docker, tag: str, volume: str) -> None:
        self._docker = docker
        hardened = ("--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp", "--network", "none")
        command = ("serve", "--config", CONFIG)
        self._start = ("run", "--detach", *hardened, "--volume", f"{volume}:/srv/wardround", tag, *command)

    def __enter__(self) -> str:
        self.container = self._docker(*self._start)
        for _ in range(90):
            asked = ["docker", "exec", self.container, "python", "-c", READY]
            done = subprocess.run(asked, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                assert done.stdout.strip() == "200"
                return self.container
            state = json.loads(self._docker("inspect", "--format", "{{json .State}}", self.container))
            assert state["Running"], self._logs()
            time.sleep(1)
        raise AssertionError(f"never ready: {self._logs()}")

    def _logs(self) -> str:
        done = subprocess.run(["docker", "logs", self.container], check=False, capture_output=True, text=True)
        return done.stdout[-2000:] + done.stderr[-2000:]

    def __exit__(self, *_: object) -> None:
        self._docker("stop", self.container)
        state = json.loads(self._docker("inspect", "--format", "{{json .State}}", self.container))
        self._docker("rm", self.container)
        assert state["ExitCode"] == 0


def test_coordinator_is_upgraded_beneath_the_old_one_and_goes_back(docker: Docker, today: str, volume: str) -> None:
    mounted = ("--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp", "--volume", f"{volume}:/srv/wardround")
    docker("run", "--rm", *mounted, "--network", "none", BEFORE, "init", "/srv/wardround/state")
    old = schema_of(docker, volume, today)
    with Serving(docker, BEFORE, volume) as container:
        docker("run", "--rm", *mounted, "--network", "none", today, "migrate", "--config", CONFIG)
        new = schema_of(docker, volume, today)
        assert new > old
        # The old one goes on serving over the expanded database.
        assert docker("exec", container, "python", "-c", READY) == "200"
    with Serving(docker, today, volume):
        pass
    with Serving(docker, BEFORE, volume):
        pass
    assert schema_of(docker, volume, today) == new
    with Serving(docker, today, volume):
        pass
