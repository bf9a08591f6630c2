"""One release as a coordinator gives it out, made once; and the keys to sign what an attacker would write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.ca.authority import CertificateAuthority, create_enrolment_identity, create_root
from coordinator.db.models import Base
from coordinator.db.tx import Database
from coordinator.services.resources import Addresses, Resources
from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.testing.entropy import seeded_signer
from tests.support.released_run import CompletedRuns

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class StandingClock:
    """One instant."""

    def now(self) -> datetime:
        return START


@dataclass(frozen=True)
class Made:
    """A published release's folder, the same before anybody signed it, and both of the coordinator's keys."""

    release: Path
    candidate: Path
    release_signer: EcdsaSigner
    coordinator: EcdsaSigner


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("made")
    certificate, key = create_root(consortium="Test", now=START)
    db = Database.from_path(root / "coordinator.db")
    Base.metadata.create_all(db.engine)
    release_signer, signer = seeded_signer("release"), seeded_signer("coordinator")
    runs = CompletedRuns(
        resources=Resources(
            db=db,
            blobs=FilesystemBlobStore(root / "blobs"),
            authority=CertificateAuthority(certificate=certificate, key=key),
            enrolment_certificate_pem=create_enrolment_identity(now=START).certificate_pem,
            signer=signer,
            release_signer=release_signer,
            clock=StandingClock(),
            addresses=Addresses(gateway="gateway.example:443", enrolment="enrol.example:443"),
            code_lifetime_s=3600.0,
            max_blob_bytes=1 << 20,
        )
    )
    runs.complete()
    release_id = runs.candidate().release_id
    for name in ("candidate", "release"):
        (root / name).mkdir()
    candidate = runs.unpacked(release_id, root / "candidate", is_candidate=True)
    runs.publish()
    yield Made(
        release=runs.unpacked(release_id, root / "release"),
        candidate=candidate,
        release_signer=release_signer,
        coordinator=signer,
    )
    db.dispose()


@pytest.fixture
def release(made: Made, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made.release, tmp_path / "release"))
