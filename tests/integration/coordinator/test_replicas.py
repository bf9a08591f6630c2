# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""Two gateways, two drivers and an api as processes of their own, on one PostgreSQL and one folder of blobs."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import pytest

from fl_protocol.wire.v1 import enrolment_pb2, round_pb2, round_pb2_grpc, run_pb2, run_pb2_grpc
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.system

START_S = 90.0
CALL_S = 20.0
PASSWORD = "of the database"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Replicas:
    """A coordinator of several processes."""

    directory: Path
    postgres: PostgresServer
    enrolment_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "WARDROUND_DRIVER__LEASE_S": "3",
            "WARDROUND_ENROLMENT__ADVERTISE": f"127.0.0.1:{self.enrolment_port}",
        }

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "coordinator", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
        )

    def init(self) -> None:
        secret = self.directory.parent / "database.password"
        secret.write_text(f"{PASSWORD}\n")
        secret.chmod(0o600)
        ports = ("--rest-port", "0", "--gateway-port", "0", "--enrolment-port", "0")
        database = ("--database-url", self.postgres.url, "--database-password-file", str(secret))
        done = self.command("--json", "init", str(self.directory), *ports, *database)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, name: str, role: str, **environment: str) -> None:
        log = (self.directory / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "coordinator",
                "serve",
                "-c",
                str(self.directory / "coordinator.yaml"),
                "--roles",
                role,
            ],
            env={**self.environment, **environment},
            stdout=log,
            stderr=log,
        )
        log.close()
        self.files[name] = self.directory / f"serve-{role}-{self.processes[name].pid}.json"

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S
        for name, path in self.files.items():
            while not path.exists():
                assert self.processes[name].poll() is None, self.log(name)
                assert time.monotonic() < deadline, f"{name} did not say that it is ready"
                time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def addresses(self, name: str) -> dict[str, str]:
        document: dict[str, str] = json.loads(self.files[name].read_text())
        return document

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(timeout=START_S)

    def stop(self) -> dict[str, int]:
        alive = {name: process for name, process in self.processes.items() if process.poll() is None}
        for process in alive.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=START_S) for name, process in alive.items()}

    def admin_token(self) -> str:
        return (self.directory / "admin.token").read_text().strip()

    def client(self, token: str | None) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.directory / "root.pem"))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(
            base_url=f"https://{self.addresses('api')['rest']}", verify=trusted, headers=headers, timeout=CALL_S
        )

    def holder(self, run_id: str) -> str:
        rows = self.postgres.execute(f"SELECT holder FROM leases WHERE name = 'run:{run_id}'")
        return str(rows[0][0]) if rows else ""


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Takes the place of the single process that the other tests speak to."""
    postgres = PostgresServer.create(password=PASSWORD)
    folder = tmp_path_factory.mktemp("replicas") / "state"
    made = Replicas(directory=folder, postgres=postgres, enrolment_port=free_port())
    try:
        made.init()
        made.start("gateway-1", "gateway", WARDROUND_ENROLMENT__PORT=str(made.enrolment_port))
        for name, role in (("gateway-2", "gateway"), ("driver-1", "driver"), ("driver-2", "driver"), ("api", "api")):
            made.start(name, role)
        made.await_ready()
        yield made
        ended = made.stop()
        assert set(ended.values()) == {0}, {name: made.log(name)[-2000:] for name, code in ended.items() if code}
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()
        postgres.dispose()


def through(gateway: str, site, coordinator):
    """The same site, over another gateway."""
    answer = enrolment_pb2.EnrolResponse()
    answer.CopyFrom(site.answer)
    answer.gateway_address = coordinator.addresses(gateway)["gateway"]
    return replace(site, answer=answer)


def poll(site, *, wait_s: float) -> str | None:
    with site.channel() as channel:
        answer = round_pb2_grpc.RoundServiceStub(channel).PollAssignment(
            round_pb2.PollAssignmentRequest(wait_s=wait_s), timeout=CALL_S
        )
    return answer.WhichOneof("instruction")


@pytest.fixture
def cohort(enrolled):
    return [enrolled(f"replica-{letter}-{os.urandom(3).hex()}") for letter in "abc"]


@pytest.fixture
def run(admin, lead, cohort, run_document, put_adapter, tools, coordinator):
    """A run that two of three have approved: the third one's word makes it ACTIVE."""
    document = run_document(*(site.name for site in cohort))
    answer = lead.post("/api/v1/runs", json={"run_spec": document, **put_adapter})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    admin.post(f"/api/v1/runs/{made['run_id']}:start").raise_for_status()
    for site in cohort[:2]:
        approve(site, made, tools)
    return made


def approve(site, run, tools) -> None:
    statement = site.statement(run, "approved", at=datetime.now(UTC).isoformat())
    with site.channel() as channel:
        run_pb2_grpc.RunServiceStub(channel).SubmitApproval(
            run_pb2.SubmitApprovalRequest(run_id=run["run_id"], statement=tools.proto(statement)), timeout=CALL_S
        )


def test_each_process_says_its_own_addresses_and_health(coordinator, admin) -> None:
    assert len({str(path) for path in coordinator.files.values()}) == 5
    first, second = coordinator.addresses("gateway-1"), coordinator.addresses("gateway-2")
    assert first["gateway"] != second["gateway"]
    assert first["enrolment"] == f"127.0.0.1:{coordinator.enrolment_port}"
    assert coordinator.addresses("driver-1")["rest"] is None
    assert admin.get("/readyz").json()["checks"]["database"] is True
    assert not (coordinator.directory / "serve.json").exists()
    done = coordinator.command("--json", "doctor", "-c", str(coordinator.directory / "coordinator.yaml"))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["database"]["code"] == "database-good", checks["database"]
    for command in ("migrate", "config check"):
        done = coordinator.command(*command.split(), "-c", str(coordinator.directory / "coordinator.yaml"))
        assert done.returncode == 0, done.stderr
        assert PASSWORD not in done.stdout


def test_word_at_one_gateway_moves_a_driver_and_is_heard_at_the_other_at_once(coordinator, run, cohort, tools) -> None:
    # The site waits in a long poll at the second gateway; the approval comes in at the first.
    waiting = through("gateway-2", cohort[0], coordinator)
    assert poll(waiting, wait_s=0.0) == "idle"
    approve(cohort[2], run, tools)
    began = time.perf_counter()
    assert poll(waiting, wait_s=15.0) == "train"
    seconds = time.perf_counter() - began
    print(f"from an approval at one gateway to the round at another: {seconds * 1000:.0f} ms")
    assert seconds < 5.0


def test_run_of_a_killed_driver_is_taken_over_when_its_lease_has_run_out(coordinator, run, cohort, tools) -> None:
    deadline = time.monotonic() + CALL_S
    while not coordinator.holder(run["run_id"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held_by = coordinator.holder(run["run_id"])
    # Which of the two it is stands in its log.
    (leader,) = [name for name in ("driver-1", "driver-2") if held_by in coordinator.log(name)]
    coordinator.kill(leader)
    began = time.perf_counter()
    approve(cohort[2], run, tools)
    assert poll(through("gateway-2", cohort[1], coordinator), wait_s=18.0) == "train"
    print(f"from the leader's death to the round: {time.perf_counter() - began:.1f} s with leases of 3 s")
    assert coordinator.holder(run["run_id"]) != held_by
    coordinator.start(leader, "driver")
    coordinator.await_ready()


def test_restart_of_postgresql_is_lived_through_by_every_process(coordinator, run, cohort, tools, admin) -> None:
    # A driver that another test killed stays dead.
    alive = [process for process in coordinator.processes.values() if process.poll() is None]
    coordinator.postgres.stop("fast")
    try:
        refused = admin.get("/readyz")
        # Without a database nothing can be recorded either.
        assert (refused.status_code, refused.json()["down"]) == (503, "audit, database")
        with pytest.raises(grpc.RpcError) as caught, cohort[0].channel() as channel:
            run_pb2_grpc.RunServiceStub(channel).ListPending(run_pb2.ListPendingRequest(), timeout=40.0)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert tools.refusal_of(caught.value).code == "database-unavailable"
        refused = admin.get("/api/v1/runs")
        assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    finally:
        coordinator.postgres.start()
    approve(cohort[2], run, tools)
    assert poll(through("gateway-2", cohort[0], coordinator), wait_s=18.0) == "train"
    assert admin.get("/readyz").status_code == 200
    assert len(alive) >= 4
    assert all(process.poll() is None for process in alive)


def test_driver_starts_before_its_database_and_stops_without_it(coordinator) -> None:
    coordinator.postgres.stop("fast")
    try:
        coordinator.start("driver-3", "driver")
        time.sleep(4.0)
        assert coordinator.processes["driver-3"].poll() is None, coordinator.log("driver-3")
        assert not coordinator.files["driver-3"].exists()
    finally:
        coordinator.postgres.start()
    coordinator.await_ready()
    coordinator.postgres.stop("fast")
    try:
        coordinator.processes["driver-3"].send_signal(signal.SIGTERM)
        assert coordinator.processes["driver-3"].wait(timeout=START_S) == 0, coordinator.log("driver-3")
    finally:
        coordinator.postgres.start()
    assert not coordinator.files.pop("driver-3").exists()


def test_database_of_one_coordinator_is_not_given_to_another(coordinator, tmp_path: Path) -> None:
    other = replace(coordinator, directory=tmp_path / "x" / "other", processes={}, files={})
    other.directory.parent.mkdir()
    secret = other.directory.parent / "database.password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    done = other.command(
        "--json", "init", str(other.directory), "--database-url", coordinator.postgres.url,
        "--database-password-file", str(secret),
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "installation-exists"
    assert not other.directory.exists()


def test_api_alone_must_be_told_where_sites_enrol(coordinator) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "coordinator",
            "serve",
            "-c",
            str(coordinator.directory / "coordinator.yaml"),
            "--roles",
            "api",
        ],
        env={key: value for key, value in coordinator.environment.items() if "ADVERTISE" not in key},
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S,
    )
    assert done.returncode == 2
    assert "enrolment.advertise" in done.stderr
