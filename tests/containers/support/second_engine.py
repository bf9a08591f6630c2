"""An engine of its own inside a network namespace: a hospital's machine, as far as containers can tell."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.namespace import Namespace

_START_S, _STOP_S = 90.0, 60.0


@contextlib.contextmanager
def engine_in(namespace: Namespace, folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start dockerd in the namespace; what `docker` has to be called with to reach it.

    Args:
        namespace: whose interfaces, routes and rules are the engine's.
        folder: a short path (a socket lies in it) on a disk; it is removed at the end.
        environment: in which `dockerd` and `docker` are found.
    """
    program = shutil.which("dockerd", path=environment.get("PATH"))
    if program is None:
        pytest.skip("dockerd is not on this machine: the hospital's own engine cannot be started")
    folder.mkdir(parents=True)
    socket = folder / "d.sock"
    words = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    words += ["--host", f"unix://{socket}", "--config-file", folder / "daemon.json"]
    (folder / "daemon.json").write_text("{}")
    # Not `ip netns exec`: that mounts another /sys, without the control groups.
    enter = ["nsenter", f"--net=/run/netns/{namespace.name}", program, *map(str, words)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(enter, env=dict(environment), stdout=log, stderr=log, start_new_session=True)
    inside = {**environment, "DOCKER_HOST": f"unix://{socket}"}
    try:
        _wait_until_up(process, folder, inside)
        yield inside
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()
        subprocess.run(["umount", str(folder / "data")], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def copy_images(images: list[str], source: Mapping[str, str], target: Mapping[str, str]) -> float:
    """Load images of one engine into another; the seconds that it took."""
    began = time.monotonic()
    with subprocess.Popen(["docker", "save", *images], env=dict(source), stdout=subprocess.PIPE) as save:
        load = subprocess.run(
            ["docker", "load", "--quiet"],
            env=dict(target),
            stdin=save.stdout,
            capture_output=True,
            timeout=600,
            check=False,
        )
    assert save.returncode == 0
    assert load.returncode == 0, load.stderr.decode()
    return time.monotonic() - began


def _wait_until_up(process: subprocess.Popen[bytes], folder: Path, environment: Mapping[str, str]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        done = subprocess.run(
            ["docker", "version"], env=dict(environment), capture_output=True, check=False, timeout=30
        )
        if done.returncode == 0:
            return
        said = (folder / "log").read_text(errors="replace")[-3000:]
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
