"""docker-compose.yml from nothing to a released adapter; then again, with database and coordinator restarted meanwhile.

The second test takes over the stack of the first, as a user would make a second run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.containers.conftest import MakeCoordinator
from tests.containers.support.probes import PROBE, Probe, probed
from tests.containers.support.stack import Stack
from wardround.evidence.release_folder import verify_release_folder

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

SITES = ("st-mary", "charite", "ucsf")
TRAINERS = tuple(f"trainer-{site}" for site in SITES)
AGENTS = tuple(f"site-{site}" for site in SITES)
_UP_S, _RUN_S = 900.0, 900.0


@pytest.fixture(scope="module")
def stack(make_coordinator: MakeCoordinator) -> Stack:
    """The whole demonstration, started by the one command of the page; it goes on while the tests look."""
    made = make_coordinator("demo", profiles=("demo",))
    made.compose("up", "--detach", timeout_s=_UP_S)
    return made


@pytest.fixture(scope="module")
def first_run(stack: Stack) -> dict[str, object]:
    """The summary of the first run, when it has ended."""
    code = stack.wait_for_end("demo", timeout_s=_RUN_S)
    assert code == 0, stack.logs("demo")
    return summary_in(stack, stack.container("demo"))


def summary_in(stack: Stack, container: str) -> dict[str, object]:
    # A container that has ended has no shell: the file is copied out of its volume.
    done = stack.docker("cp", f"{container}:/srv/demo/summary.json", "-")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    return dict(json.loads(text[text.index("{") : text.rindex("}") + 1]))


def test_stack_from_nothing_ends_in_a_released_adapter_whose_logs_verify(
    stack: Stack, first_run: dict[str, object], tmp_path: Path
) -> None:
    assert first_run["audit_verified"] is True
    assert first_run["sites"] == list(SITES)
    assert set(first_run["audit_rows"]) == {"coordinator", *SITES}
    assert all(rows > 5 for rows in first_run["audit_rows"].values())
    rounds = first_run["rounds"]
    # Three of training and the evaluation after them, as the study says.
    assert [(line["index"], line["state"]) for line in rounds] == [(index, "COMMITTED") for index in range(4)]
    assert all(sorted(line["counted_sites"]) == sorted(SITES) for line in rounds)
    assert first_run["eval_loss_after"] < first_run["eval_loss_before"]
    assert first_run["generation"]["prompt"].startswith("Define sign 1-")
    # The release is whole outside of the containers, too, by the key of the root that was handed over.
    copied = stack.docker("cp", f"{stack.container('demo')}:/srv/demo/release", str(tmp_path / "release"))
    assert copied.returncode == 0, copied.stderr
    verified = verify_release_folder(tmp_path / "release", expected_key_sha256=None)
    assert {one.role for one in verified.signatures} == {"study-lead", "privacy-officer"}


def test_logs_of_the_stack_can_be_read_by_people(stack: Stack, first_run: dict[str, object]) -> None:
    for service in (*AGENTS, *TRAINERS, "coordinator", "demo", "prepare", "enrol"):
        lines = stack.logs(service).splitlines()
        assert lines, service
        assert not [line for line in lines if "Traceback" in line], service
        assert not [line for line in lines if "\x1b[" in line], f"{service} writes a terminal's codes"
    told = stack.logs("demo")
    assert "Every audit log is verified" in told
    assert "docker compose --profile demo cp demo:/srv/demo/release ./release" in told


@pytest.mark.parametrize("service", TRAINERS)
def test_trainer_reaches_nothing_and_can_write_to_its_jobs_only(stack: Stack, service: str) -> None:
    found = probed(stack, service, writable=("/srv/wardround/jobs", "/tmp"))
    assert found.interfaces == ("lo",)
    assert found.routes == 0
    assert found.reached == {}, "a connection out of a container without network"
    assert found.resolved == {}
    assert found.read_only == (*PROBE.system_folders, "/data", "/models")
    assert_nothing_to_gain(found)
    assert found.secrets == ()


@pytest.mark.parametrize("service", AGENTS)
def test_agent_sees_no_records_and_no_numeric_library(stack: Stack, service: str) -> None:
    found = probed(stack, service, writable=("/srv/wardround", "/srv/wardround/jobs", "/tmp"))
    assert found.modules == ()
    assert found.records == ()
    assert found.read_only == PROBE.system_folders
    assert_nothing_to_gain(found)
    # In the demonstration the coordinator is all that an agent can reach: no name outside, no address.
    assert found.resolved == {}
    assert found.reached == {}


def test_coordinator_and_database_run_without_rights(stack: Stack) -> None:
    found = probed(stack, "coordinator", writable=("/srv/wardround", "/tmp"))
    assert found.modules == ()
    assert found.read_only == (*PROBE.system_folders, "/srv/secrets")
    assert_nothing_to_gain(found)
    postgres = stack.run_in("postgres", "sh", "-c", "id -u; grep CapEff /proc/self/status; touch /usr/x 2>&1 || true")
    assert postgres.stdout.split()[:3] == ["999", "CapEff:", "0000000000000000"]
    assert "Read-only file system" in postgres.stdout


def test_database_is_reached_by_the_coordinator_alone(stack: Stack) -> None:
    for service in ("site-st-mary", "coordinator"):
        code = "import socket; socket.create_connection(('postgres', 5432), 5).close()"
        done = stack.run_in(service, "python", "-c", code)
        assert (done.returncode == 0) == (service == "coordinator"), done.stderr


def assert_nothing_to_gain(found: Probe) -> None:
    assert (found.uid, found.gid) == (10001, 10001)
    assert found.capabilities == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}
    assert found.no_new_privileges
    assert found.seccomp == 2
    assert found.sockets == ()
    assert found.unexpected_writable == ()


def test_database_and_coordinator_restarted_in_a_run_cost_nothing(stack: Stack, first_run: dict[str, object]) -> None:
    again = stack.compose("run", "--detach", "--no-deps", "demo", "run", "--again", *_url_of(stack)).strip()
    began = stack.wait_until(
        "a trainer is at work",
        lambda: [name for name in TRAINERS if "job begins: job=run-" in _since(stack, name, again)],
        timeout_s=_RUN_S,
    )
    assert began
    stack.compose("restart", "--timeout", "20", "postgres")
    stack.compose("restart", "--timeout", "20", "coordinator")
    # And once without a word of warning.
    stack.wait_until(
        "a second job begins",
        lambda: [name for name in TRAINERS if _since(stack, name, again).count("job begins: job=run-") >= 2],
        timeout_s=_RUN_S,
    )
    for service in ("coordinator", "postgres"):
        stack.compose("kill", "--signal", "SIGKILL", service)
        stack.compose("start", service)
    waited = stack.docker("wait", again, timeout_s=_RUN_S)
    told = stack.docker("logs", again)
    assert waited.stdout.strip() == "0", told.stdout + told.stderr + _errors_of(stack, "coordinator")
    report = summary_in(stack, again)
    assert report["run_id"] != first_run["run_id"]
    # The same seed, data and base: what was interrupted comes to the same figures, to the last bit.
    assert report["eval_loss_after"] == first_run["eval_loss_after"]
    assert report["eval_loss_before"] == first_run["eval_loss_before"]
    stack.docker("rm", again)


def _url_of(stack: Stack) -> tuple[str, ...]:
    return ("--coordinator", f"https://coordinator:{stack.environment['WARDROUND_REST_PORT']}")


def _errors_of(stack: Stack, service: str) -> str:
    """What a service wrote of its own faults: from each traceback on, and lines of errors."""
    lines = stack.logs(service).splitlines()
    faults = [place for place, line in enumerate(lines) if "[error" in line or "Traceback" in line]
    return "\n".join(line for place in faults[:3] for line in ("", *lines[max(0, place - 1) : place + 80]))


def _since(stack: Stack, service: str, container: str) -> str:
    """What a service wrote since another container was started."""
    started = stack.docker("inspect", "--format", "{{.State.StartedAt}}", container).stdout.strip()
    done = stack.docker("logs", "--since", started, stack.container(service))
    return done.stdout + done.stderr
