# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""``wardround-coordinator doctor`` on real folders that are well, and that lack what one has lost before."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from coordinator.doctor import network_checks
from coordinator.doctor.scene import Scene
from coordinator.doctor.table import CHECKS, diagnose, run_checks
from coordinator.installation import open_installation
from fl_protocol.clock import Clock, SystemClock
from fl_protocol.telemetry.findings import CheckResult, Health
from tests.support.gateway import Pki
from tests.support.relay import TlsInterceptor


class ShiftedClock:
    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


@pytest.fixture(scope="module")
def made(make_coordinator, tmp_path_factory: pytest.TempPathFactory):
    coordinator = make_coordinator(directory=tmp_path_factory.mktemp("doctor") / "state")
    coordinator.init()
    return coordinator


@pytest.fixture
def config(made, tmp_path: Path) -> Path:
    """A copy of one that was made once, for a test to spoil."""
    shutil.copytree(made.directory, tmp_path / "state")
    return tmp_path / "state" / "coordinator.yaml"


def change(config: Path, **sections: dict[str, object]) -> None:
    document = yaml.safe_load(config.read_text())
    for section, keys in sections.items():
        document[section] |= keys
    config.write_text(yaml.safe_dump(document))


def told(config: Path, name: str, *, clock: Clock | None = None) -> list[CheckResult]:
    return [result for result in diagnose(config, clock=clock or SystemClock()) if result.name == name]


def codes(config: Path, name: str, *, clock: Clock | None = None) -> list[str]:
    results = told(config, name, clock=clock)
    assert all(result.advice for result in results if result.health in {Health.WARNING, Health.FAILED})
    return [result.code for result in results]


def test_new_coordinator_is_well_but_for_what_its_admin_has_still_to_do(config: Path) -> None:
    results = diagnose(config, clock=SystemClock())
    assert [result.code for result in results if result.health is Health.FAILED] == []
    assert {result.code for result in results if result.health is Health.WARNING} == {
        "admin-token-left",
        "backup-unknown",
    }
    assert {result.name for result in results} == {check.name for check in CHECKS} - {"clock", "identity provider"}


def test_codes_mean_one_thing_and_say_what_to_do() -> None:
    outcomes = [(check.name, outcome) for check in CHECKS for outcome in check.outcomes]
    assert len({outcome.code for _, outcome in outcomes}) == len(outcomes)
    for _, outcome in outcomes:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", outcome.code)
        assert outcome.means.endswith(".")
        assert outcome.health in {Health.OK, Health.NOTE} or len(outcome.advice) > 20


def test_missing_file_is_told_with_how_to_make_one(tmp_path: Path) -> None:
    (result,) = diagnose(tmp_path / "coordinator.yaml", clock=SystemClock())
    assert (result.name, result.code) == ("configuration", "settings-invalid")
    assert "init" in result.advice


def test_keys_that_others_may_read_are_told(config: Path) -> None:
    (config.parent / "keys").chmod(0o770)
    assert codes(config, "permissions") == ["keys-exposed"]
    assert "chmod 700" in told(config, "permissions")[0].advice


@pytest.mark.parametrize(
    ("years", "expected"),
    [(0.0, ["keys-good"]), (9.7, ["ca-certificate-ending"]), (9.98, ["ca-certificate-ends-now"])],
)
def test_root_that_ends_is_told_in_time(config: Path, years: float, expected: list[str]) -> None:
    # A root lives 3653 days.
    clock = ShiftedClock(timedelta(days=365.25 * years))
    assert [code for code in codes(config, "keys", clock=clock) if not code.startswith("enrolment")] == expected


def test_database_without_tables_is_to_be_migrated(config: Path) -> None:
    for file in config.parent.glob("coordinator.db*"):
        file.unlink()
    assert codes(config, "database") == ["database-behind"]


def test_database_that_cannot_record_is_told(config: Path) -> None:
    with contextlib.closing(sqlite3.connect(config.parent / "coordinator.db")) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'no record'); END"
        )
    assert codes(config, "database") == ["database-unwritable"]


def test_database_server_that_is_not_there_is_told(config: Path) -> None:
    change(config, database={"url": "postgresql+pg8000://wardround@127.0.0.1:1/wardround"})
    assert codes(config, "database") == ["database-unreachable"]
    assert codes(config, "clock") == []


def test_blobs_that_cannot_be_written_and_a_full_disk_are_told(config: Path) -> None:
    shutil.rmtree(config.parent / "blobs")
    (config.parent / "blobs").write_text("no folder")
    assert codes(config, "blobs") == ["blobs-unusable"]
    assert "folder-missing" in codes(config, "disk")
    scene = Scene(
        installation=open_installation(config), config=config, clock=SystemClock(), free_bytes=lambda _: 1 << 30
    )
    assert "disk-little" in [result.code for result in run_checks(scene) if result.name == "disk"]


def test_backup_is_known_by_its_age(config: Path, made) -> None:
    file = config.parent.parent / "backup.tar"
    done = made.run("backup", str(file), "--without-keys", "--config", str(config))
    assert done.exit_code == 0, done.output
    assert codes(config, "backup") == ["backup-recent"]
    assert codes(config, "backup", clock=ShiftedClock(timedelta(days=9))) == ["backup-old"]


def test_port_of_another_program_is_told(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        change(config, gateway={"port": taken.getsockname()[1]})
        results = {result.facts["listener"]: result.code for result in told(config, "ports")}
    assert results["gateway"] == "port-taken"
    assert results["rest"] == "port-chosen"


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        ({"host": "127.0.0.1"}, "address-local"),
        ({"host": "0.0.0.0"}, "address-nowhere"),
        ({"host": "0.0.0.0", "advertise": "coordinator.invalid:8444"}, "address-unknown"),
        ({"host": "0.0.0.0", "advertise": "198.18.0.1:8444"}, "address-untried"),
    ],
)
def test_address_that_sites_are_told_is_judged(config: Path, gateway: dict[str, object], expected: str) -> None:
    change(config, gateway=gateway)
    results = {result.facts["listener"]: result.code for result in told(config, "addresses")}
    assert results["gateway"] == expected


def test_rest_for_other_machines_needs_a_name_that_they_know(config: Path) -> None:
    change(config, rest={"host": "0.0.0.0"})
    assert codes(config, "names") == ["names-local"]
    change(config, rest={"host": "0.0.0.0", "names": ["coordinator.example"]})
    assert codes(config, "names") == ["names-good"]


def test_metrics_for_other_machines_are_noted(config: Path) -> None:
    assert codes(config, "metrics") == ["metrics-local"]
    change(config, metrics={"host": "0.0.0.0", "port": 9464})
    assert codes(config, "metrics") == ["metrics-open"]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of this machine are taken for those of another."""
    monkeypatch.setattr(network_checks, "_is_loopback", lambda _: False)


def test_advertised_addresses_are_tried_with_this_coordinators_certificates(
    coordinator, elsewhere, tmp_path: Path
) -> None:
    scene = Scene(installation=open_installation(coordinator.config), config=coordinator.config, clock=SystemClock())
    addresses = coordinator.addresses()

    def reach(**advertised: str) -> dict[str, str]:
        settings = scene.installation.settings
        changed = settings.model_copy(
            update={
                "gateway": settings.gateway.model_copy(
                    update={
                        "advertise": advertised.get("gateway", addresses["gateway"]),
                        "http1_advertise": addresses["gateway_http1"],
                    }
                ),
                "enrolment": settings.enrolment.model_copy(
                    update={"advertise": advertised.get("enrolment", addresses["enrolment"])}
                ),
            }
        )
        look = replace(scene, installation=replace(scene.installation, settings=changed))
        return {str(result.facts["listener"]): result.code for result in run_checks(look) if result.name == "addresses"}

    assert reach() == {
        "gateway": "address-reached",
        "enrolment": "address-reached",
        "gateway over HTTP/1.1": "address-reached",
    }
    certificate, key = Pki("Load balancer").write(tmp_path, Pki("Load balancer").server("fl.example"))
    with TlsInterceptor(certificate=certificate, key=key) as balancer:
        assert reach(gateway=balancer.address)["gateway"] == "address-foreign"
    assert reach(enrolment="127.0.0.1:1")["enrolment"] == "address-unreached"
    assert [result.code for result in run_checks(scene) if result.name == "process"] == ["process-well"]


def test_command_says_it_in_words_and_as_a_document(config: Path, made) -> None:
    done = made.run("--json", "doctor", "--config", str(config))
    document = json.loads(done.stdout)
    assert (done.exit_code, document["ok"]) == (0, True)
    schema = json.loads((Path(__file__).parents[3] / "docs/reference/doctor-report.schema.json").read_text())
    jsonschema_rs.validate(schema, document)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {**document, "checks": [{**document["checks"][0], "health": "failed"}]})
    (config.parent / "keys" / "signing.key.pem").chmod(0o644)
    done = made.run("doctor", "--config", str(config))
    assert done.exit_code == 1
    assert "MEND  permissions: others may use signing.key.pem [keys-exposed]" in done.stdout
    assert "to mend, from the top" in done.stdout
