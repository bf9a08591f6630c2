"""Real file systems that are really full: a small tmpfs under each of the two sides' stores. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.db.audit import append_audit, audit_head
from coordinator.db.migrate import migrate
from coordinator.db.tx import Database
from coordinator.errors import BlobStoreFullError, DatabaseFullError
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from site_agent.audit.store import AuditLog
from site_agent.audit.store import audit_head as site_head
from site_agent.db.errors import SiteDatabaseFullError
from site_agent.db.tx import open_site_db
from site_agent.errors import SiteDiskFullError
from site_agent.session.events import Step
from site_agent.state.disk_space import require_space
from site_agent.state.journal import ExchangeRecord, Journal
from tests.support.tools import need_root, tool

pytestmark = pytest.mark.system

_SIZE = 6 << 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT = ExchangeContext(
    run_id=RunId("run-" + "c" * 26), round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=0
)


class Clock:
    def now(self) -> datetime:
        return NOW


class Disk:
    """A small file system of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self) -> None:
        """Leave not one block free."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                return

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_root()
    mount, umount = tool("mount"), tool("umount")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run([mount, "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "tmpfs", place], check=True)
    yield Disk(place)
    subprocess.run([umount, place], check=True)


def append(store: FilesystemBlobStore, data: bytes) -> None:
    with closing(store.open_partial("upload")) as writer:
        writer.append(data)


def test_blob_store_on_a_full_disk_keeps_what_it_has_and_goes_on(disk: Disk) -> None:
    store = FilesystemBlobStore(disk.place / "blobs")
    kept = store.put_bytes(b"k" * 10_000)
    append(store, b"u" * 5_000)
    disk.fill()
    assert store.free_bytes() == 0
    with pytest.raises(BlobStoreFullError):
        store.put_bytes(b"x" * 1_000_000)
    with pytest.raises(BlobStoreFullError):
        append(store, b"u" * 1_000_000)
    held = store.partial_size("upload")
    assert held >= 5_000
    assert set(b"".join(store.iter_partial("upload"))) == set(b"u")
    assert store.read(kept.sha256) == b"k" * 10_000
    assert list((disk.place / "blobs" / "new").iterdir()) == []
    disk.free()
    append(store, b"u" * 100_000)
    assert store.partial_size("upload") == held + 100_000
    assert store.has(store.put_bytes(b"x" * 1_000_000).sha256)


def append_many(n: int) -> Callable[[Session], None]:
    def write(session: Session) -> None:
        for _ in range(n):
            append_audit(session, AuditKind.CALL_REFUSED, actor="coordinator", facts={"why": "x" * 2_000}, now=NOW)

    return write


def test_coordinators_database_on_a_full_disk_is_typed_and_loses_nothing(disk: Disk) -> None:
    database = Database.from_path(disk.place / "coordinator.db")
    migrate(database.engine)
    database.run_tx("before", append_many(3))
    before = database.read("head", audit_head)
    disk.fill()
    for _ in range(5):
        # The log file may have a little room that is its own already; what does not fit fails whole.
        with pytest.raises(DatabaseFullError):
            database.run_tx("full", append_many(500))
    assert database.read("head", audit_head) == before
    disk.free()
    database.run_tx("after", append_many(10))
    assert database.read("head", audit_head)[0] == before[0] + 10
    database.dispose()


def record(message: bytes) -> ExchangeRecord:
    return ExchangeRecord(context=CONTEXT, taken=((Step.ADVERTISE, ""),), message=message, snapshot=b"s" * 200)


def test_sites_journal_and_spool_on_a_full_disk_keep_the_record_before(disk: Disk) -> None:
    journal = Journal(disk.place / "journal", entropy=SeededEntropy("disk"))
    journal.write(record(b"first"))
    disk.fill()
    with pytest.raises(SiteDiskFullError):
        require_space(disk.place / "jobs", 1, purpose="training")
    with pytest.raises(SiteDiskFullError):
        journal.write(record(b"second" * 10_000))
    with pytest.raises(SiteDiskFullError):
        journal.write_spool(CONTEXT, [b"m" * 1_000_000])
    found = journal.read(CONTEXT)
    assert found is not None
    assert found.message == b"first"
    disk.free()
    journal.write(record(b"second" * 10_000))
    assert journal.write_spool(CONTEXT, [b"m" * 1_000_000]).stat().st_size == 1_000_000
    again = journal.read(CONTEXT)
    assert again is not None
    assert again.message == b"second" * 10_000


def test_sites_database_and_audit_log_on_a_full_disk_record_nothing_and_go_on(disk: Disk) -> None:
    db = open_site_db(disk.place / "site.db")
    log = AuditLog(seeded_signer("site"), Clock(), "site:here")

    def write(session: Session) -> None:
        for _ in range(400):
            log.append(session, AuditKind.CALL_REFUSED, "agent", why="x" * 2_000)

    db.run_tx("before", lambda session: log.append(session, AuditKind.PROCESS_STARTED, "agent"))
    disk.fill()
    for _ in range(3):
        with pytest.raises(SiteDatabaseFullError):
            db.run_tx("full", write)
    assert db.run_read("head", site_head).size == 1
    disk.free()
    db.run_tx("after", lambda session: log.append(session, AuditKind.PROCESS_STOPPED, "agent"))
    assert db.run_read("head", site_head).size == 2
    db.close()
