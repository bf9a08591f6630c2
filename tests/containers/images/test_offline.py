"""A bundle, carried into an engine that is empty and has no network: what a hospital without internet does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.images.conftest import ROOT, Docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def bundle(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle and the public key, made by the commands that the program's head names."""
    tags = [images["coordinator"], images["site-agent"]]
    folder = tmp_path_factory.mktemp("bundle")
    private, public = folder / "release.key.pem", folder / "release.pub.pem"
    make_key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make_key, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    command = [sys.executable, "deploy/offline/make_bundle.py", "--key", str(private), "--out", str(folder)]
    done = subprocess.run([*command, *tags], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*-bundle.tar")), public


@pytest.fixture
def empty_engine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that reaches a second engine: without images, in a network namespace with a loopback only."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None or shutil.which("unshare") is None:
        pytest.skip("a second engine needs root, dockerd and unshare")
    # A socket's path has room for a hundred characters.
    socket = Path(f"/run/wardround-test-offline-{os.getpid()}.sock")
    command = [
        "unshare",
        "--net",
        "dockerd",
        "--data-root",
        str(tmp_path / "data"),
        "--exec-root",
        str(tmp_path / "exec"),
    ]
    command += ["--pidfile", str(tmp_path / "pid"), "--host", f"unix://{socket}", "--config-file", "/dev/null"]
    command += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    environment = os.environ | {"DOCKER_HOST": f"unix://{socket}"}
    (tmp_path / "config").mkdir()
    with (tmp_path / "log").open("wb") as log:
        engine = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(120):
            if subprocess.run(["docker", "version"], env=environment, check=False, capture_output=True).returncode == 0:
                break
            assert engine.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield environment
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(timeout=60)
        socket.unlink(missing_ok=True)


def unpacked(bundle: Path, to: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(to, filter="data")
    return next(to.glob("wardround-*"))


def install(folder: Path, public: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "install.sh"), "--key", str(public)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def images_of(environment: dict[str, str]) -> list[str]:
    command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    return sorted(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    )


def test_bundle_is_installed_into_an_empty_engine_without_network_and_an_altered_one_is_not(
    bundle: tuple[Path, Path], empty_engine: dict[str, str], images: dict[str, str], tmp_path: Path, docker: Docker
) -> None:
    packed, public = bundle
    folder = unpacked(packed, tmp_path / "carried")
    assert images_of(empty_engine) == []

    carried = next((folder / "images").glob("wardround-coordinator-*.tar.gz"))
    whole = carried.read_bytes()
    altered = bytearray(whole)
    altered[len(altered) // 2] ^= 1
    carried.write_bytes(altered)
    done = install(folder, public, empty_engine)
    assert done.returncode == 1
    assert "is not what was signed" in done.stderr
    assert images_of(empty_engine) == []

    carried.write_bytes(whole)
    done = install(folder, public, empty_engine)
    assert done.returncode == 0, done.stderr
    tags = sorted((images["coordinator"], images["site-agent"]))
    assert images_of(empty_engine) == tags
    for tag in tags:
        command = ["docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", tag]
        there = subprocess.run(command, env=empty_engine, check=True, capture_output=True, text=True).stdout.strip()
        assert there == docker(*command[1:])
    run = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--tmpfs",
        "/tmp",
        images["site-agent"],
        "--help",
    ]
    done = subprocess.run(run, env=empty_engine, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "enrol" in done.stdout


def test_bundle_that_was_cut_short_on_its_way_does_not_unpack_or_is_refused(
    bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    packed, public = bundle
    short = tmp_path / "short.tar"
    with packed.open("rb") as whole, short.open("wb") as file:
        file.write(whole.read(packed.stat().st_size // 2))
    # tar says so and leaves what it had; who goes on all the same is stopped by install.sh.
    done = subprocess.run(
        ["tar", "--extract", "--file", short, "--directory", tmp_path], check=False, capture_output=True
    )
    assert done.returncode != 0
    folder = next(tmp_path.glob("wardround-*"))
    refused = install(folder, public, dict(os.environ))
    assert refused.returncode == 1
    assert "nothing was loaded" in refused.stderr
