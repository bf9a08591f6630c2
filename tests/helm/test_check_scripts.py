"""What `helm test` runs in a cluster is run here: against real listeners, and against a coordinator of three processes.

The coordinator reads the file that the chart renders. Only what belongs to the cluster is another: addresses, database.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.ca.authority import create_root
from fl_protocol.pki.tls import pem_from_certificate
from tests.support.charts import ROOT, named, rendered

WAY = ROOT / "helm" / "site-agent" / "files" / "check_way.py"
LISTENERS = ROOT / "helm" / "coordinator" / "files" / "check_listeners.py"
ROLES = ("api", "gateway", "driver")
START_S = 120.0


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True)


@pytest.fixture
def listening() -> Iterator[str]:
    """An address that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    """An address of this machine at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_way_that_is_open_as_expected_is_well(listening: str) -> None:
    done = run(WAY, "--expect=open", listening)
    assert done.returncode == 0
    assert f"ok   {listening} is open" in done.stdout


def test_way_that_is_closed_says_where_to_look(silent: str) -> None:
    done = run(WAY, "--expect=open", silent)
    assert done.returncode == 1
    assert "networkPolicy, the firewall and the address" in done.stdout


def test_trainer_without_a_network_is_well(silent: str) -> None:
    assert run(WAY, "--expect=closed", silent, "name.invalid:443").returncode == 0


def test_trainer_with_a_network_is_a_fault_of_the_cluster(silent: str, listening: str) -> None:
    done = run(WAY, "--expect=closed", silent, listening)
    assert done.returncode == 1
    assert "does the cluster's network enforce NetworkPolicies?" in done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A coordinator of three processes, in one folder."""

    folder: Path
    processes: Mapping[str, subprocess.Popen[bytes]]
    serve: Mapping[str, Mapping[str, Any]]


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", *words, "--config", str(folder / "coordinator.yaml")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("coordinator") / "state"
    init = [sys.executable, "-m", "coordinator", "init", str(folder)]
    subprocess.run(init, check=True, capture_output=True, cwd=ROOT)
    text = named(rendered("coordinator", "minimal"), "ConfigMap", "wr-wardround-coordinator")["data"][
        "coordinator.yaml"
    ]
    document = yaml.safe_load(text)
    document["database"] = {"url": "sqlite:///coordinator.db"}
    for section in ("rest", "gateway", "enrolment"):
        document[section] |= {"host": "127.0.0.1", "port": 0}
    document["gateway"]["http1_port"] = document["enrolment"]["http1_port"] = 0
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(document))
    (folder / "blobs").mkdir(exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for role in ROLES:
            said_in = folder / f"{role}.json"
            words = command(folder, "serve", "--roles", role, "--serve-file", str(said_in))
            with (folder / f"{role}.log").open("wb") as log:
                processes[role] = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        yield Running(
            folder=folder,
            processes=processes,
            serve={role: _said(folder / f"{role}.json", processes[role]) for role in ROLES},
        )
    finally:
        for process in processes.values():
            process.terminate()
        # The pod's grace is a minute.
        assert [process.wait(timeout=60) for process in processes.values()] == [0] * len(processes)


def _said(file: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while not file.exists():
        assert process.poll() is None, file.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, f"{file.name} has not come"
        time.sleep(0.05)
    return dict(json.loads(file.read_text()))


def addresses_of(running: Running) -> list[str]:
    gateway = running.serve["gateway"]
    return [
        f"--rest={running.serve['api']['rest']}",
        f"--gateway={gateway['gateway']}",
        f"--gateway={gateway['gateway_http1']}",
        f"--enrolment={gateway['enrolment']}",
        f"--enrolment={gateway['enrolment_http1']}",
    ]


@pytest.mark.e2e
@pytest.mark.parametrize("is_root_given", [True, False])
def test_coordinator_of_the_rendered_file_passes_helms_test(running: Running, *, is_root_given: bool) -> None:
    root = [f"--root={running.folder / 'root.pem'}"] if is_root_given else []
    done = run(LISTENERS, *addresses_of(running), *root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok   ") == 5


@pytest.mark.e2e
def test_coordinator_of_another_root_fails_helms_test(running: Running, tmp_path: Path) -> None:
    root, _ = create_root(consortium="Another", now=datetime.now(tz=UTC))
    (tmp_path / "root.pem").write_bytes(pem_from_certificate(root))
    done = run(LISTENERS, *addresses_of(running), f"--root={tmp_path / 'root.pem'}")
    assert done.returncode == 1
    # The enrolment listener is known by a pin, not by the root.
    assert done.stdout.count("FAIL ") == 3


@pytest.mark.e2e
@pytest.mark.parametrize("role", ROLES)
def test_probes_find_each_role_well(running: Running, role: str) -> None:
    spec = named(rendered("coordinator", "minimal"), "Deployment", f"-{role}")["spec"]["template"]["spec"]
    probes = [spec["containers"][0][kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    asked = 0
    for probe in (one["exec"]["command"] for one in probes if "exec" in one):
        assert probe[0] == "wardround-coordinator"
        words = [
            word if word != "/srv/wardround/coordinator.yaml" else str(running.folder / "coordinator.yaml")
            for word in probe
        ]
        said_in = {"WARDROUND_SERVE_FILE": str(running.folder / f"{role}.json")}
        program = [sys.executable, "-m", "coordinator", *words[1:]]
        done = subprocess.run(program, check=False, capture_output=True, text=True, cwd=ROOT, env=os.environ | said_in)
        assert done.returncode == 0, done.stdout + done.stderr
        asked += 1
    assert (asked > 0) == (role != "api")
