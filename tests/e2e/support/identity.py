"""What the suites of identity do to a federation: short certificates, programs called, folders read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from fl_protocol.audit.events import RecordedEvent, event_from_bytes
from site_agent.audit.store import read_log
from site_agent.db.tx import open_site_db
from site_agent.enrolment.identity_file import load_identity
from site_agent.folder import SiteFolder
from tests.e2e.support.federation import Federation, free_port
from tests.e2e.support.template import ENVIRONMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program said with ``--json``, and its exit code."""

    exit_code: int
    document: dict[str, Any]

    @property
    def error_code(self) -> str:
        """The code of the error that it told."""
        return str(self.document["error"]["code"])


def call(module: str, *words: str) -> Answer:
    """Run a program of Wardround to its end."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--json", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    return Answer(exit_code=done.returncode, document=json.loads(done.stdout))


def call_site(folder: Path, *words: str) -> Answer:
    """Run a command of a site's program."""
    return call("site_agent", "--state-dir", str(folder), *words)


def call_ca(federation: Federation, *words: str) -> Answer:
    """Run a command of the coordinator's authority."""
    return call("coordinator", "ca", *words, "--config", str(federation.coordinator_dir / "coordinator.yaml"))


def live_briefly(federation: Federation, *, certificate_s: float, check_in_s: float = 1.0) -> None:
    """Certificates of seconds, and an enrolment listener at a port that is kept over restarts."""
    port = free_port("127.0.0.1")
    federation.configure_coordinator(
        identity={"site_certificate_s": certificate_s, "check_in_s": check_in_s}, enrolment={"port": port}
    )
    for name in federation.site_names:
        federation.configure_site(name, coordinator={"enrolment_address": f"127.0.0.1:{port}"})


def site_state(federation: Federation, name: str) -> str:
    """What the coordinator says of a site."""
    return str(federation.client.get(f"/api/v1/sites/{name}")["state"])


def coordinator_events(federation: Federation, *kinds: str) -> list[dict[str, Any]]:
    """Its audit events of these kinds, in order."""
    return [dict(event) for event in federation.client.pages("/api/v1/audit/events") if event["kind"] in kinds]


def site_events(folder: Path) -> list[RecordedEvent]:
    """The audit log of a site whose agent is stopped, or between two of its writes."""
    db = open_site_db(SiteFolder(root=folder).database)
    try:
        return [event_from_bytes(row.body) for row in db.run_read("read_log", read_log).rows]
    finally:
        db.close()


def certificate_of(folder: Path) -> x509.Certificate:
    """The certificate in use."""
    return x509.load_pem_x509_certificate(load_identity(SiteFolder(root=folder)).certificate_pem)


def seconds_left(folder: Path) -> float:
    """How long it still lives."""
    return (certificate_of(folder).not_valid_after_utc - datetime.now(UTC)).total_seconds()


def agent_status(folder: Path) -> dict[str, Any]:
    """What the agent wrote last."""
    document: dict[str, Any] = json.loads(SiteFolder(root=folder).status_json.read_text())
    return document


def believe_new_root(federation: Federation) -> None:
    """What people do while a root is replaced: they take root.pem again, which holds both."""
    shutil.copy2(federation.coordinator_dir / "root.pem", federation.root_file)
    federation.sign_in_again()
