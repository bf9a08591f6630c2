"""The daemon as a process: one a folder, stopped by SIGTERM, with a coordinator that is not there."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.testing.entropy import seeded_signer
from site_agent.daemon import run_site_agent
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import open_site_db
from site_agent.doctor.live import ask_live
from site_agent.enrolment.identity_file import SiteIdentity, save_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.errors import StateDirectoryLockedError
from site_agent.folder import SiteFolder
from site_agent.settings import load_settings
from site_agent.state.directory_lock import DirectoryLock

PROGRAM = """
import sys
from pathlib import Path
from site_agent.daemon import run_site_agent
from site_agent.settings import load_settings
run_site_agent(load_settings(Path(sys.argv[1])))
"""


@pytest.fixture
def enrolled(tmp_path: Path) -> SiteFolder:
    folder = SiteFolder(root=tmp_path)
    keys = KeyStore(folder)
    keys.ensure_keys()
    tls_key = serialization.load_pem_private_key(keys.load_tls_key_pem(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(tls_key.public_key())  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(tls_key, hashes.SHA256())  # type: ignore[arg-type]
        .public_bytes(serialization.Encoding.PEM)
    )
    identity = SiteIdentity(
        site_id=SiteId("alpha"),
        gateway_address="127.0.0.1:1",
        gateway_server_name="gateway",
        signing_key_sha256=keys.signing_key_sha256(),
        coordinator_signing_spki=seeded_signer("coordinator").spki_der,
        certificate_pem=certificate,
        root_pem=certificate,
        root_sha256=Sha256Hex("ab" * 32),
        enrolled_at=now,
    )
    save_identity(folder, identity)
    folder.site_yaml.write_text("coordinator: {address: '127.0.0.1:1'}\n")
    folder.policy_yaml.write_text("tasks: []\n")
    return folder


async def live(folder: SiteFolder) -> tuple[int | None, str]:
    """A healthcheck's exit code, and what it says."""
    asked = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "site_agent", "--json", "doctor", "--live", "--state-dir", str(folder.root), stdout=-1
    )
    said, _ = await asked.communicate()
    return asked.returncode, json.loads(said)["code"]


async def test_agent_without_a_coordinator_says_so_and_stops_on_sigterm(enrolled: SiteFolder) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(enrolled.root), stdout=-3, stderr=-3
    )
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.1)
            if enrolled.status_json.exists():
                status = json.loads(enrolled.status_json.read_text())
                if status["problem"] == "coordinator-unavailable":
                    break
        assert (status["site_id"], status["connected"]) == ("alpha", False)
        assert await live(enrolled) == (0, "well")
        process.send_signal(signal.SIGSTOP)
        stuck = ask_live(enrolled, now=datetime.now(UTC) + timedelta(seconds=30))
        assert (stuck.code, str(process.pid) in stuck.sentence) == ("stuck", True)
        process.send_signal(signal.SIGCONT)
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(enrolled.root), stdout=-3, stderr=-1
        )
        _, complaint = await second.communicate()
        assert second.returncode == 1
        assert b"StateDirectoryLockedError" in complaint
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await live(enrolled) == (1, "not-running")
    assert json.loads(enrolled.status_json.read_text())["state"] == "stopped"
    db = open_site_db(enrolled.database)
    bodies = db.run_read("rows", lambda session: list(session.scalars(select(AuditEventRow.body))))
    db.close()
    kinds = [event_from_bytes(body).event.kind for body in bodies]
    assert kinds == [AuditKind.PROCESS_STARTED, AuditKind.POLICY_LOADED, AuditKind.PROCESS_STOPPED]


def test_second_agent_on_a_folder_is_refused_before_anything_is_opened(enrolled: SiteFolder) -> None:
    lock = DirectoryLock(enrolled.root)
    lock.acquire()
    with pytest.raises(StateDirectoryLockedError):
        run_site_agent(load_settings(enrolled.root))
    lock.release()
    assert not enrolled.database.exists()
