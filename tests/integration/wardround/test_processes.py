from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from wardround.demo.processes import Supervisor, run_parallel, wait_for_file
from wardround.errors import DemoFailedError

SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(tmp_path, os.environ)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def is_alive(process_id: int) -> bool:
    """Whether the process runs; one that has ended and was not yet reaped by its new parent does not."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def await_gone(process_id: int) -> bool:
    deadline = time.monotonic() + 10
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(process_id)


def test_supervisor_that_is_left_by_an_error_ends_what_it_started(supervisor: Supervisor) -> None:
    started: list[int] = []

    def start_and_fail() -> None:
        with supervisor:
            started.append(supervisor.start("sleeper", python(SLEEPS)).process.pid)
            assert is_alive(started[0])
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        start_and_fail()
    assert await_gone(started[0])


def test_supervisor_ends_the_grandchildren_in_the_same_group_as_well(supervisor: Supervisor, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, os;"
        f"p = subprocess.Popen([sys.executable, '-S', '-c', '{SLEEPS}']);"
        f"pathlib.Path('{pid_file}.tmp').write_text(str(p.pid)); os.rename('{pid_file}.tmp', '{pid_file}'); p.wait()"
    )
    with supervisor:
        supervisor.start("parent", python(code))
        wait_for_file(pid_file, supervisor, timeout_s=20, what="the grandchild")
        grandchild = int(pid_file.read_text())
        assert is_alive(grandchild)
    assert await_gone(grandchild)


def test_process_that_ends_by_itself_is_noticed_with_its_last_words(supervisor: Supervisor) -> None:
    with supervisor:
        child = supervisor.start("coordinator", python("print('last words'); raise SystemExit(3)"))
        child.process.wait()
        with pytest.raises(DemoFailedError, match="coordinator ended by itself with exit code 3") as caught:
            supervisor.check_alive()
    assert caught.value.log_tail == ("last words",)


def test_command_that_fails_is_named_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    code = "import sys; print('out'); print('why', file=sys.stderr); raise SystemExit(2)"
    with supervisor, pytest.raises(DemoFailedError, match="enrol failed with exit code 2") as caught:
        supervisor.run("enrol", python(code))
    assert sorted(caught.value.log_tail) == ["out", "why"]


def test_command_that_takes_too_long_is_ended(supervisor: Supervisor) -> None:
    with supervisor, pytest.raises(DemoFailedError, match="within 0 s"):
        supervisor.run("slow", python(SLEEPS), timeout_s=0.2)


def test_command_with_one_document_on_stdout_is_read(supervisor: Supervisor) -> None:
    with supervisor:
        assert supervisor.run_json("j", python("print('{\"a\": 1}')")) == {"a": 1}
        with pytest.raises(DemoFailedError, match="JSON"):
            supervisor.run_json("j", python("print('no')"))


def test_first_failure_of_parallel_tasks_ends_the_others_and_starts_nothing_more(supervisor: Supervisor) -> None:
    def failing() -> None:
        raise DemoFailedError("the first")

    began = time.monotonic()
    with supervisor, pytest.raises(DemoFailedError, match="the first"):
        run_parallel(supervisor, {"slow": lambda: supervisor.run("slow", python(SLEEPS)), "failing": failing})
    assert time.monotonic() - began < 30
    with pytest.raises(DemoFailedError, match="ending"):
        supervisor.start("late", python(SLEEPS))


def test_command_that_was_stopped_fails_with_what_caused_it(supervisor: Supervisor) -> None:
    outcomes: list[str] = []

    def slow() -> None:
        try:
            supervisor.run("slow", python(SLEEPS))
        except DemoFailedError as error:
            outcomes.append(error.message)
            raise

    def failing() -> None:
        supervisor.run("failing", python("raise SystemExit(3)"))

    with supervisor, pytest.raises(DemoFailedError, match="failing failed with exit code 3"):
        run_parallel(supervisor, {"slow": slow, "failing": failing})
    assert outcomes == ["failing failed with exit code 3"]


def test_file_that_is_never_written_is_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    with supervisor, pytest.raises(DemoFailedError, match="the coordinator was not ready"):
        wait_for_file(tmp_path / "never", supervisor, timeout_s=0.1, what="the coordinator")
