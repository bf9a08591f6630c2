"""A backup of a coordinator that goes on serving: one consistent view of all rows, then every blob that they name.

Blobs are never changed and are written before the rows that name them, so what the rows of one instant name is in the
store and stays there; only scrubbing takes blobs away, and what it took meanwhile the backup may lack too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from coordinator.blobs.names import BlobNameDigest
from coordinator.blobs.store import BlobStore
from coordinator.db.audit import audit_head
from coordinator.db.blob_references import named_blobs
from coordinator.db.migrate import head_revision, held_revision
from coordinator.db.tx import Database
from coordinator.errors import BlobNotFoundError
from coordinator.installation import CONFIG_FILE, ROOT_CERTIFICATE, Installation, Keys
from coordinator.services.epochs import current_epoch
from coordinator.services.resources import origin_of
from coordinator.upkeep.archive import ArchiveWriter, new_archive
from coordinator.upkeep.errors import BackupIncompleteError, BackupInvalidError, BackupUnreadableError
from coordinator.upkeep.sealed_keys import seal_files
from coordinator.upkeep.table_rows import backed_up_tables, iter_lines
from fl_protocol.clock import Clock

SEALED_KEYS = "keys.sealed"
DATABASE_PASSWORD = "database-password"  # noqa: S105 # a name inside the sealed files
_MADE_AT_EACH_START = frozenset({"rest.key.pem", "rest.pem"})
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMade:
    """What is in the file."""

    path: Path
    made_at: datetime
    manifest_sha256: str
    n_rows: int
    n_blobs: int
    n_bytes: int
    audit_size: int
    audit_head: str
    epoch: int
    has_keys: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """What the rows of one instant say."""

    n_rows: int
    blobs: tuple[str, ...]
    audit_size: int
    audit_head: str
    epoch: int


def make_backup(
    installation: Installation, path: Path, *, clock: Clock, passphrase: bytes | None, report: Report
) -> BackupMade:
    """Write a backup to a file that is not there yet.

    Args:
        installation: the coordinator's; it may be serving.
        path: the file.
        clock: the present instant.
        passphrase: seals the private keys; None leaves them out.
        report: told of each step, for people.

    Raises:
        BackupExistsError, BackupDiskFullError, BackupIncompleteError, BackupUnreadableError.
        BackupInvalidError: the database has another schema than this version's: migrate, or use that version.
        CaError: a key cannot be read.
    """
    keys = installation.load_keys()
    made_at = clock.now()
    # Before the long work: a passphrase that is too short is said at once.
    sealed = None if passphrase is None else seal_files(_private_files(installation), passphrase)
    database = installation.open_database()
    try:
        revision = _revision(database)
        with new_archive(path) as archive:
            snapshot = _write_tables(archive, database, report=report)
            gone = _write_blobs(archive, database, installation.open_blobs(), snapshot.blobs, report=report)
            _write_files(archive, installation, sealed)
            document = _document(installation, keys, snapshot, made_at=made_at, revision=revision, gone=gone)
            digest = archive.finish({**document, "has_keys": sealed is not None}, keys.signer)
            members = archive.members
    finally:
        database.dispose()
    return BackupMade(
        path=path,
        made_at=made_at,
        manifest_sha256=digest,
        n_rows=snapshot.n_rows,
        n_blobs=len(snapshot.blobs) - len(gone),
        n_bytes=sum(member.n_bytes for member in members.values()),
        audit_size=snapshot.audit_size,
        audit_head=snapshot.audit_head,
        epoch=snapshot.epoch,
        has_keys=sealed is not None,
    )


@contextmanager
def consistent_view(database: Database) -> Iterator[Connection]:
    """One connection that sees one instant for as long as it is open, and writes nothing."""
    engine = database.engine
    if engine.dialect.name == "sqlite":
        engine = engine.execution_options(wardround_read_only=True)
    else:
        engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with engine.connect() as connection, connection.begin():
        yield connection


def _revision(database: Database) -> str:
    held = held_revision(database.engine)
    if held is None or held != head_revision():
        raise BackupInvalidError(
            "the database has another schema than this version's; migrate it, or use the version that did",
            held=str(held),
            known=head_revision(),
        )
    return held


def _write_tables(archive: ArchiveWriter, database: Database, *, report: Report) -> _Snapshot:
    n_rows = 0

    def counted(lines: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal n_rows
        for line in lines:
            n_rows += 1
            yield line

    with consistent_view(database) as connection:
        for table in backed_up_tables():
            before = n_rows
            archive.add(f"tables/{table.name}.jsonl", counted(iter_lines(connection, table)))
            report(f"{table.name}: {n_rows - before} rows")
        with Session(connection) as session:
            size, head = audit_head(session)
            blobs, epoch = tuple(sorted(named_blobs(session))), current_epoch(session)
    return _Snapshot(n_rows=n_rows, blobs=blobs, audit_size=size, audit_head=head, epoch=epoch)


def _write_blobs(
    archive: ArchiveWriter, database: Database, store: BlobStore, digests: tuple[str, ...], *, report: Report
) -> tuple[str, ...]:
    """Copy the blobs; returns those that were scrubbed since the snapshot.

    Raises:
        BackupIncompleteError: one is gone that a row still names.
    """
    gone: list[str] = []
    n_bytes = 0
    for n_done, sha256 in enumerate(digests, start=1):
        try:
            size = store.size(sha256)
            chunks = store.iter_chunks(sha256)
        except BlobNotFoundError as error:
            if database.read("still-named", lambda session, found=sha256: named_blobs(session, [found])):  # type: ignore[misc] # mypy infers no default
                message = "the blob store lacks a blob that the database names; run the doctor"
                raise BackupIncompleteError(message, sha256=sha256) from error
            gone.append(sha256)
            continue
        found = BlobNameDigest()
        archive.add_sized(f"blobs/{sha256}", found.watch(chunks), n_bytes=size)
        if not found.is_of(sha256):
            raise BackupIncompleteError("a blob in the store is not what its name says", sha256=sha256)
        n_bytes += size
        if n_done % 100 == 0 or n_done == len(digests):
            report(f"blobs: {n_done} of {len(digests)}, {n_bytes} bytes")
    return tuple(gone)


def _write_files(archive: ArchiveWriter, installation: Installation, sealed: bytes | None) -> None:
    folder = installation.directory
    for name in (CONFIG_FILE, ROOT_CERTIFICATE):
        content = (folder / name).read_bytes()
        archive.add_sized(f"files/{name}", iter([content]), n_bytes=len(content))
    if sealed is not None:
        archive.add_sized(SEALED_KEYS, iter([sealed]), n_bytes=len(sealed))


def _private_files(installation: Installation) -> dict[str, bytes]:
    """Everything in the folder of keys, and the database's password where there is one."""
    files = {
        f"keys/{path.name}": path.read_bytes()
        for path in sorted(installation.keys_directory.iterdir())
        if path.is_file() and path.name not in _MADE_AT_EACH_START and not path.name.startswith(".")
    }
    if not files:
        raise BackupUnreadableError("there is no key to seal", folder=str(installation.keys_directory))
    password = installation.settings.database.password_file
    if password is not None:
        files[DATABASE_PASSWORD] = (installation.directory / password).read_bytes()
    return files


def _document(
    installation: Installation,
    keys: Keys,
    snapshot: _Snapshot,
    *,
    made_at: datetime,
    revision: str,
    gone: tuple[str, ...],
) -> dict[str, object]:
    del installation
    return {
        "made_at": made_at.isoformat(),
        "version": _version(),
        "schema_revision": revision,
        "origin": origin_of(keys.authority.founding_sha256),
        "signing_spki": keys.signer.spki_der.hex(),
        "epoch": snapshot.epoch,
        "audit": {"size": snapshot.audit_size, "head": snapshot.audit_head},
        "n_rows": snapshot.n_rows,
        "scrubbed_meanwhile": list(gone),
    }


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wardround")
    except PackageNotFoundError:
        return "0+unknown"
