"""The units for sites without containers, before systemd's own judgement."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
# systemd's measure of what a service could do beyond its work, times ten: 10 is the best of services without a root
# folder of their own, 96 the worst.
EXPOSURE_AT_MOST = {"wardround-coordinator": 14, "wardround-site": 18, "wardround-trainer": 13}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"),
]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("name", EXPOSURE_AT_MOST)
def test_unit_is_understood_whole(name: str, tmp_path: Path) -> None:
    """Verified is the unit as it is, but for the folder of the programs: they need not be installed here."""
    text = (UNITS / f"{name}.service").read_text()
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("python", "wardround-site", "wardround-coordinator"):
        (programs / program).write_text("#!/bin/sh\n")
        (programs / program).chmod(0o755)
    for other in EXPOSURE_AT_MOST:
        copied = (UNITS / f"{other}.service").read_text().replace("/opt/wardround/venv/bin", str(programs))
        (tmp_path / f"{other}.service").write_text(copied)
    assert "/opt/wardround/venv/bin" in text
    done = analyze("verify", "--man=no", str(tmp_path / f"{name}.service"))
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "wardround" in line]
    assert (done.returncode, ours) == (0, [])


def test_unit_with_a_wrong_line_is_found(tmp_path: Path) -> None:
    text = (UNITS / "wardround-trainer.service").read_text().replace("PrivateNetwork=yes", "PrivateNetwerk=yes")
    (tmp_path / "wardround-trainer.service").write_text(text)
    done = analyze("verify", "--man=no", str(tmp_path / "wardround-trainer.service"))
    assert "PrivateNetwerk" in done.stderr


@pytest.mark.parametrize(("name", "at_most"), EXPOSURE_AT_MOST.items())
def test_unit_may_do_little_beyond_its_work(name: str, at_most: int) -> None:
    done = analyze("security", "--offline=true", f"--threshold={at_most}", str(UNITS / f"{name}.service"))
    assert done.returncode == 0, done.stdout[-2000:]


def test_trainer_has_no_network_no_capability_and_not_the_agents_folder() -> None:
    done = analyze("security", "--offline=true", "--json=short", str(UNITS / "wardround-trainer.service"))
    judged = {row["json_field"]: row for row in json.loads(done.stdout)}
    assert judged["PrivateNetwork"]["set"] is True
    assert judged["NoNewPrivileges"]["set"] is True
    assert [field for field in judged if field.startswith("CapabilityBoundingSet") and not judged[field]["set"]] == []
    lines = (UNITS / "wardround-trainer.service").read_text().splitlines()
    assert "InaccessiblePaths=-/srv/wardround -/srv/wardround-coordinator" in lines
    assert "User=wardround-trainer" in lines


def test_users_and_folders_are_made_as_the_units_name_them(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None or shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-sysusers and systemd-tmpfiles are not installed")
    for folder in ("etc", "usr/lib", "srv"):
        (tmp_path / folder).mkdir(parents=True)
    for program, file in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        arguments = ["--create"] if program == "systemd-tmpfiles" else []
        command = [program, f"--root={tmp_path}", *arguments, str(UNITS / f"wardround.{file}.conf")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    groups = {line.split(":")[0]: line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert sorted(groups["wardround-jobs"][3].split(",")) == ["wardround", "wardround-trainer"]
    users = {line.split(":")[0]: line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert {"wardround", "wardround-trainer", "wardround-coordinator"} <= users.keys()
    jobs = (tmp_path / "srv/wardround-jobs").stat()
    assert jobs.st_mode & 0o7777 == 0o2770
    assert (jobs.st_uid, jobs.st_gid) == (int(users["wardround"][2]), int(groups["wardround-jobs"][2]))
    assert (tmp_path / "srv/wardround").stat().st_mode & 0o7777 == 0o700
