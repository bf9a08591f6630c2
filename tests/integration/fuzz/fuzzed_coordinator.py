"""A whole coordinator behind its real listeners, over the database of a recorded run.

It is a process of its own, so that the memory that it uses is its own. It prints where it listens, and stops when its
standard input closes.

    python fuzzed_coordinator.py FOLDER SNAPSHOT
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.ca.authority import GATEWAY_SERVER_NAME, CertificateAuthority, create_enrolment_identity, create_root
from coordinator.db.migrate import migrate
from coordinator.db.models import Certificate, Site
from coordinator.gateway.http1_server import open_http1_gateway
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.gateway.server import open_enrolment, open_gateway
from coordinator.services import poll_instruction
from fl_protocol.ids import SiteId
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from tests.support.wire_coordinator import SetClock, WireCoordinator, load_snapshot

LONGEST_POLL_S = 0.5
RECORDED = Path(__file__).parents[2] / "vectors" / "wire" / "0.1.0"


class RunningClock(SetClock):
    """Begins at the recorded instant and goes on as time does: waits end by it."""

    def __init__(self, at: datetime) -> None:
        super().__init__(at)
        self._began = time.monotonic()

    def now(self) -> datetime:
        return self.at + timedelta(seconds=time.monotonic() - self._began)


def made_coordinator(folder: Path, snapshot: str) -> WireCoordinator:
    """The coordinator as it was when the snapshot was taken, on this version's schema."""
    transcript = json.loads((RECORDED / "transcript.json").read_bytes())
    part = transcript["snapshots"][snapshot]
    load_snapshot(folder, sql=(RECORDED / f"{snapshot}.sql").read_text(), files=part["files"])
    at = datetime.fromisoformat(transcript["records"][max(0, part["before_record"] - 1)]["at"])
    made = WireCoordinator(folder=folder, root_pem=transcript["root_pem"].encode(), clock=RunningClock(at))
    migrate(made.db.engine)
    return made


def site_identities(coordinator: WireCoordinator, authority: CertificateAuthority) -> dict[str, dict[str, str]]:
    """A certificate that TLS believes today, and that the coordinator knows, for every enrolled site."""
    identities: dict[str, dict[str, str]] = {}

    def write(session: Session) -> None:
        identities.clear()
        for name in session.scalars(select(Site.site_id).where(Site.state == "ENROLLED")).all():
            key = generate_private_key()
            issued = authority.issue_site_certificate(
                site_id=SiteId(name), csr_der=make_csr(key), now=datetime.now(UTC)
            )
            session.add(
                Certificate(
                    fingerprint_sha256=issued.sha256,
                    site_id=name,
                    serial=f"fuzz-{name}",
                    not_before=coordinator.clock.at,
                    not_after=coordinator.clock.at + timedelta(days=1),
                    revoked_at=None,
                )
            )
            identities[name] = {
                "certificate": issued.pem.decode(),
                "key": pem_from_private_key(key).decode(),
            }

    coordinator.db.run_tx("fuzz", write)
    return identities


async def serve(folder: Path, snapshot: str) -> None:
    """Listen until standard input closes."""
    coordinator = made_coordinator(folder, snapshot)
    certificate, key = create_root(consortium="Fuzz", now=datetime.now(UTC))
    authority = CertificateAuthority(certificate=certificate, key=key)
    # TLS of today; what is recorded and compared stays as it was recorded.
    resources = replace(coordinator.resources, authority=authority)
    served = ServedIdentity(authority, names=[GATEWAY_SERVER_NAME], now=lambda: datetime.now(UTC))
    gateway = open_gateway(resources, coordinator.engine, served=served, host="127.0.0.1", port=0)
    enrolment_identity = create_enrolment_identity(now=datetime.now(UTC))
    # What enrolment issues is of the recorded authority and time; TLS of this listener has a certificate of its own.
    enrolment = open_enrolment(coordinator.resources, identity=enrolment_identity, host="127.0.0.1", port=0)
    http1 = open_http1_gateway(resources, coordinator.engine, served=served, host="127.0.0.1", port=0, stop_grace_s=1.0)
    sites = site_identities(coordinator, authority)
    await gateway.server.start()
    await enrolment.server.start()
    serving = asyncio.create_task(http1.server.serve(sockets=[http1.socket]))
    await http1.server.is_up.wait()
    answer = {
        "gateway": gateway.address,
        "enrolment": enrolment.address,
        "http1": http1.address,
        "root": authority.root_pem.decode(),
        "enrolment_certificate": enrolment_identity.certificate_pem.decode(),
        "server_name": GATEWAY_SERVER_NAME,
        "sites": sites,
        "signing_key": base64.b64encode(coordinator.engine.signer.spki_der).decode(),
    }
    print(json.dumps(answer), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    http1.stop()
    await gateway.server.stop(1.0)
    await enrolment.server.stop(1.0)
    await serving
    coordinator.close()


if __name__ == "__main__":
    # A site may ask for a poll of 25 s, and the fuzz does. That it ends is tried, not for how long one waits.
    poll_instruction.MAX_WAIT_S = LONGEST_POLL_S
    # Standard output is read once. A line for each refused call would measure the log.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
