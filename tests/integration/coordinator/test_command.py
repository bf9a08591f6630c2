# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import stat


def test_init_makes_private_keys_of_their_owner_and_prints_the_next_command(new_coordinator) -> None:
    answer = new_coordinator.init()
    keys = sorted((new_coordinator.directory / "keys").glob("*.key.pem"))
    assert [path.name for path in keys] == ["enrolment.key.pem", "release.key.pem", "root.key.pem", "signing.key.pem"]
    for path in (*keys, new_coordinator.directory / "admin.token"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answer["next"] == f"wardround-coordinator serve --config {new_coordinator.config}"
    shown = json.loads(new_coordinator.run("--json", "ca", "show", "--config", str(new_coordinator.config)).stdout)
    assert shown["root_sha256"] == answer["root_sha256"]
    exported = new_coordinator.run("ca", "export-root", "--config", str(new_coordinator.config)).stdout
    assert exported.strip() == (new_coordinator.directory / "root.pem").read_text().strip()


def test_init_in_a_folder_that_is_not_empty_changes_nothing(new_coordinator) -> None:
    new_coordinator.directory.mkdir()
    (new_coordinator.directory / "mine").write_text("x")
    done = new_coordinator.run("init", str(new_coordinator.directory))
    assert done.exit_code == 1
    assert "installation-exists" in done.stderr
    assert [path.name for path in new_coordinator.directory.iterdir()] == ["mine"]


def test_init_into_an_empty_folder_hands_over_the_token_and_a_second_time_changes_nothing(
    new_coordinator, tmp_path
) -> None:
    folder, over = new_coordinator.directory, tmp_path / "over"
    # As a container's volume: there, with folders of the image in it.
    (folder / "jobs").mkdir(parents=True)
    words = ("--json", "init", str(folder), "--if-missing", "--hand-over", str(over))
    done = new_coordinator.run(*words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["admin_token_file"] == str(over / "admin.token")
    assert not (folder / "admin.token").exists()
    assert stat.S_IMODE((over / "admin.token").stat().st_mode) == 0o600
    assert (over / "root.pem").read_text() == (folder / "root.pem").read_text()
    before = {path: path.stat().st_mtime_ns for path in (*folder.rglob("*"), *over.iterdir())}
    again = new_coordinator.run(*words)
    assert (again.exit_code, json.loads(again.stdout)["made"]) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in (*folder.rglob("*"), *over.iterdir())} == before


def test_make_password_writes_one_once(new_coordinator, tmp_path) -> None:
    file = tmp_path / "database.password"
    made = [json.loads(new_coordinator.run("--json", "make-password", str(file)).stdout)["made"] for _ in range(2)]
    assert made == [True, False]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_configuration_with_unknown_keys_is_refused_by_name(new_coordinator) -> None:
    new_coordinator.init()
    text = new_coordinator.config.read_text().replace("  poll_s:", "  pol_s:")
    new_coordinator.config.write_text(text + "\ngatway: {}\n")
    done = new_coordinator.run("config", "check", "--config", str(new_coordinator.config))
    assert done.exit_code == 2
    assert "driver.pol_s: this key does not exist" in done.stderr
    assert "gatway: this key does not exist" in done.stderr
    as_json = new_coordinator.run("--json", "config", "check", "--config", str(new_coordinator.config))
    assert json.loads(as_json.stdout)["error"]["code"] == "settings-invalid"


def test_doctor_names_what_is_wrong_and_what_to_do(new_coordinator) -> None:
    new_coordinator.init()
    done = new_coordinator.run("--json", "doctor", "--config", str(new_coordinator.config))
    assert done.exit_code == 0, done.stdout
    (new_coordinator.directory / "keys" / "signing.key.pem").chmod(0o644)
    done = new_coordinator.run("--json", "doctor", "--config", str(new_coordinator.config))
    assert done.exit_code == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["keys"]["code"] == "keys-unreadable"
    assert "chmod 600" in checks["permissions"]["advice"]


def test_serve_on_a_port_in_use_says_so_and_ends(new_coordinator) -> None:
    new_coordinator.init()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        new_coordinator.environment["WARDROUND_REST__PORT"] = str(taken.getsockname()[1])
        done = new_coordinator.run_process("serve", "--config", str(new_coordinator.config))
    assert done.returncode == 5, done.stderr
    assert b"listener-failed" in done.stderr
    assert not (new_coordinator.directory / "serve.json").exists()


def test_serve_on_a_database_of_another_version_asks_for_a_migration(new_coordinator) -> None:
    new_coordinator.init()
    for file in new_coordinator.directory.glob("coordinator.db*"):
        file.unlink()
    done = new_coordinator.run_process("serve", "--config", str(new_coordinator.config))
    assert done.returncode == 1
    assert b"wardround-coordinator migrate" in done.stderr
    assert new_coordinator.run("migrate", "--config", str(new_coordinator.config)).exit_code == 0


def test_serve_of_an_unknown_role_is_wrong_usage(new_coordinator) -> None:
    new_coordinator.init()
    done = new_coordinator.run("serve", "--config", str(new_coordinator.config), "--roles", "api,nothing")
    assert done.exit_code == 2


def test_token_is_made_on_the_host_and_written_over_nothing(new_coordinator, tmp_path) -> None:
    new_coordinator.init()
    file = tmp_path / "again.token"
    words = ("--json", "token", "--file", str(file), "--config", str(new_coordinator.config))
    done = new_coordinator.run(*words)
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("wrt_")
    assert file.read_text().strip() not in done.output
    assert json.loads(done.stdout)["expires_at"]
    assert new_coordinator.run(*words).exit_code == 1
    nobody = ("token", "--user", "nobody", "--file", str(tmp_path / "none"), "--config", str(new_coordinator.config))
    assert "not-found" in new_coordinator.run(*nobody).stderr
    assert not (tmp_path / "none").exists()
    assert new_coordinator.run(*nobody).exit_code == 4


def test_token_that_could_not_be_written_is_not_made(new_coordinator, tmp_path) -> None:
    new_coordinator.init()
    words = ("token", "--file", str(tmp_path / "none" / "admin.token"), "--config", str(new_coordinator.config))
    done = new_coordinator.run(*words)
    assert (done.exit_code, "No such file or directory" in done.stderr) == (1, True)
    with contextlib.closing(sqlite3.connect(new_coordinator.directory / "coordinator.db")) as connection:
        # The one that `init` made.
        assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (1,)
