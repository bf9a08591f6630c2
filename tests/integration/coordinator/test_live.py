# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""``doctor --live`` asks processes that run, that stand still, that lost a part, and that are not there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.doctor.live import LiveAnswer, ask_live


@pytest.fixture(scope="module")
def running(make_coordinator, tmp_path_factory: pytest.TempPathFactory):
    made = make_coordinator(directory=tmp_path_factory.mktemp("live") / "state")
    made.init()
    made.start()
    yield made
    made.stop()
    answer = ask_live(made.directory)
    assert (answer.code, "no coordinator runs here" in answer.sentence) == ("not-running", True)


def until_well(folder: Path) -> LiveAnswer:
    """A driver is at work once it has turned."""
    deadline = time.monotonic() + 30
    while not (answer := ask_live(folder)).is_well and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


def test_live_coordinator_is_well_by_exit_code_and_by_document(running) -> None:
    assert until_well(running.directory).is_well
    done = running.run_process("--json", "doctor", "--live", "--config", str(running.config))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == "well"


def test_live_loads_neither_the_server_nor_the_database(running) -> None:
    program = (
        "import sys\nfrom coordinator.program import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    heavy = {'uvicorn', 'fastapi', 'sqlalchemy', 'grpc', 'cryptography', 'pydantic', 'typer', 'structlog'}\n"
        "    print(end.code, sorted(heavy & set(sys.modules)))"
    )
    assert until_well(running.directory).is_well
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--live", "--config", str(running.config)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_process_that_stands_still_does_not_answer(running) -> None:
    assert until_well(running.directory).is_well
    running.process.send_signal(signal.SIGSTOP)
    try:
        answer = ask_live(running.directory)
        loop = ask_live(running.directory, is_loop_only=True)
    finally:
        running.process.send_signal(signal.SIGCONT)
    assert (answer.code, loop.code) == ("no-answer", "no-answer")
    assert str(running.process.pid) in answer.sentence
    assert until_well(running.directory).is_well


def test_coordinator_that_cannot_record_is_not_well(running) -> None:
    assert until_well(running.directory).is_well
    with contextlib.closing(sqlite3.connect(running.directory / "coordinator.db")) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'no record'); END"
        )
        # What the last probe found is good for two seconds.
        deadline = time.monotonic() + 10
        while (answer := ask_live(running.directory)).is_well and time.monotonic() < deadline:
            time.sleep(0.2)
        # Nobody who would start it again is told to: that mends no database.
        loop = running.run_process("doctor", "--live", "--loop", "--config", str(running.config))
        connection.execute("DROP TRIGGER refuse")
    assert answer.code == "part-unwell"
    assert (loop.returncode, loop.stdout.startswith(b"well")) == (0, True)
    assert "audit" in answer.sentence
    assert until_well(running.directory).is_well


def test_driver_alone_is_asked_by_the_file_that_it_was_given(new_coordinator, tmp_path: Path) -> None:
    new_coordinator.init()
    said_in = tmp_path / "driver.json"
    new_coordinator.environment["WARDROUND_SERVE_FILE"] = str(said_in)
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "serve", "--config", str(new_coordinator.config), "--roles", "driver"],
        env={**os.environ, **new_coordinator.environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (answer := ask_live(new_coordinator.directory, said_in)).is_well:
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        done = new_coordinator.run_process("doctor", "--live", "--config", str(new_coordinator.config))
        assert done.returncode == 0, done.stdout
        # Without that file nobody of this folder is known, and an exit code says so.
        del new_coordinator.environment["WARDROUND_SERVE_FILE"]
        done = new_coordinator.run_process("doctor", "--live", "--config", str(new_coordinator.config))
        assert (done.returncode, b"no coordinator runs here" in done.stdout) == (1, True)
    finally:
        process.terminate()
        process.wait(30)


def test_process_of_another_machine_on_the_same_folder_is_not_asked(tmp_path: Path) -> None:
    said = {"pid": os.getpid(), "live": "127.0.0.1:1", "machine": "another.example"}
    (tmp_path / "serve.json").write_text(json.dumps(said))
    assert ask_live(tmp_path).code == "not-running"


def test_second_serve_that_finds_the_ports_taken_leaves_what_the_first_says(running) -> None:
    assert until_well(running.directory).is_well
    said = running.addresses()
    port = said["gateway"].rpartition(":")[2]
    running.environment["WARDROUND_GATEWAY__PORT"] = port
    try:
        second = running.run_process("serve", "--config", str(running.config))
    finally:
        del running.environment["WARDROUND_GATEWAY__PORT"]
    assert (second.returncode, b"listener-failed" in second.stderr) == (5, True)
    assert running.addresses() == said
    assert until_well(running.directory).is_well


def test_listener_that_is_gone_is_named(running) -> None:
    assert until_well(running.directory).is_well
    path = running.directory / "serve.json"
    said = running.addresses()
    path.write_text(json.dumps({**said, "gateway": "127.0.0.1:1"}))
    answer = ask_live(running.directory)
    path.write_text(json.dumps(said))
    assert (answer.code, "gateway" in answer.sentence) == ("listener-deaf", True)
