"""A coordinator out of a backup: checked whole, made whole or not at all, and in a new epoch.

Nothing is written before the manifest's signature, every digest and the audit log's own signatures were found right.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import inspect

from coordinator.blobs.names import BlobNameDigest
from coordinator.blobs.store import UNRESUMED, BlobStore
from coordinator.ca.key_files import write_new_file
from coordinator.db.migrate import is_known_revision, migrate
from coordinator.db.models import AuditCheckpoint
from coordinator.db.models import AuditRow as AuditTable
from coordinator.db.tx import Database
from coordinator.errors import BlobDigestMismatchError
from coordinator.installation import (
    CONFIG_FILE,
    ROOT_CERTIFICATE,
    SIGNING_KEY,
    Installation,
    Keys,
    open_installation,
)
from coordinator.services.epochs import begin_epoch
from coordinator.upkeep.archive import ArchiveReader, open_archive
from coordinator.upkeep.backup import DATABASE_PASSWORD, SEALED_KEYS, Report
from coordinator.upkeep.errors import BackupInvalidError, BackupUnreadableError, RestoreTargetError
from coordinator.upkeep.sealed_keys import open_files
from coordinator.upkeep.table_rows import backed_up_tables, insert_lines, row_from_line
from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.verify import AuditFault, verify_log
from fl_protocol.clock import Clock
from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.errors import PkiError
from fl_protocol.pki.keys import private_key_from_pem
from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.signing.signed import SignedBody

_URL_LINE = re.compile(r"(?m)^(database:[^\n]*\n(?:[ \t#][^\n]*\n|\n)*?[ \t]+url:)[ \t]*[^\n]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How to restore.

    Attributes:
        passphrase: opens the sealed keys.
        keys_folder: a copy of the keys, where the backup was made without them.
        database_url: another database than the configuration in the backup names.
        epoch: the new epoch's number; by default the backup's and one. Say a higher one when the same backup was
            restored before, so that attempts rise above those of that restore too.
    """

    passphrase: bytes | None = None
    keys_folder: Path | None = None
    database_url: str | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was made."""

    directory: Path
    epoch: int
    backup_made_at: datetime
    audit_size: int
    audit_head: str
    n_rows: int
    n_blobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """What the manifest says, read."""

    made_at: datetime
    revision: str
    origin: str
    signing_spki: bytes
    epoch: int
    audit_size: int
    audit_head: str


def restore_backup(path: Path, directory: Path, *, clock: Clock, options: RestoreOptions, report: Report) -> Restored:
    """Make a coordinator's folder (and fill its database) out of a backup.

    Raises:
        BackupInvalidError: the file is not a whole, unaltered backup that this version knows.
        BackupUnreadableError: its keys cannot be had.
        RestoreTargetError: the folder or the database is not empty.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RestoreTargetError("the folder is not empty; name another", directory=str(directory))
    with open_archive(path) as archive:
        report("signature and digests are right")
        manifest = _read_manifest(archive.document)
        _verify_audit(archive, manifest)
        report(f"the audit log of {manifest.audit_size} rows verifies")
        secrets = _secrets(archive, options)
        _check_signing_key(secrets, manifest)
        directory.parent.mkdir(parents=True, exist_ok=True)
        workplace = directory.with_name(f".{directory.name}.restore-{os.getpid()}")
        workplace.mkdir(mode=0o700)
        try:
            made = _fill(archive, workplace, manifest, secrets, clock=clock, options=options, report=report)
            if directory.exists():
                directory.rmdir()
            workplace.rename(directory)
        except BaseException:
            shutil.rmtree(workplace, ignore_errors=True)
            raise
    return Restored(
        directory=directory,
        epoch=made.epoch,
        backup_made_at=manifest.made_at,
        audit_size=manifest.audit_size,
        audit_head=manifest.audit_head,
        n_rows=made.n_rows,
        n_blobs=made.n_blobs,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filled:
    epoch: int
    n_rows: int
    n_blobs: int


def _fill(
    archive: ArchiveReader,
    workplace: Path,
    manifest: _Manifest,
    secrets: Mapping[str, bytes],
    *,
    clock: Clock,
    options: RestoreOptions,
    report: Report,
) -> _Filled:
    installation, keys = _write_files(archive, workplace, secrets, options)
    n_blobs = _write_blobs(archive, installation, report=report)
    database = installation.open_database()
    try:
        n_rows = _write_rows(archive, database, manifest, report=report)
        epoch = manifest.epoch + 1 if options.epoch is None else options.epoch
        database.run_tx(
            "begin-epoch",
            lambda session: begin_epoch(
                session,
                epoch=epoch,
                backup_made_at=manifest.made_at,
                signer=keys.signer,
                origin=manifest.origin,
                now=clock.now(),
            ),
        )
    finally:
        database.dispose()
    report(f"epoch {epoch} has begun")
    return _Filled(epoch=epoch, n_rows=n_rows, n_blobs=n_blobs)


def _read_manifest(document: Mapping[str, object]) -> _Manifest:
    try:
        audit = document["audit"]
        assert isinstance(audit, Mapping)
        manifest = _Manifest(
            made_at=datetime.fromisoformat(str(document["made_at"])),
            revision=str(document["schema_revision"]),
            origin=str(document["origin"]),
            signing_spki=bytes.fromhex(str(document["signing_spki"])),
            epoch=int(str(document["epoch"])),
            audit_size=int(str(audit["size"])),
            audit_head=str(audit["head"]),
        )
    except (KeyError, ValueError, AssertionError) as error:
        raise BackupInvalidError("the manifest lacks what a backup says") from error
    if not is_known_revision(manifest.revision):
        raise BackupInvalidError(
            "the backup has a schema that this version does not know; restore it with the version that made it",
            schema_revision=manifest.revision,
            version=str(document.get("version")),
        )
    return manifest


def _verify_audit(archive: ArchiveReader, manifest: _Manifest) -> None:
    with archive.open(f"tables/{AuditTable.__tablename__}.jsonl") as lines:
        rows = [_audit_row(row_from_line(line, AuditTable.__table__)) for line in lines]  # type: ignore[arg-type] # a table
    with archive.open(f"tables/{AuditCheckpoint.__tablename__}.jsonl") as lines:
        checkpoints = [_signed(row_from_line(line, AuditCheckpoint.__table__)) for line in lines]  # type: ignore[arg-type] # a table
    found = verify_log(rows, checkpoints, manifest.signing_spki, origin=manifest.origin)
    if isinstance(found, AuditFault):
        raise BackupInvalidError(
            "the audit log in the backup does not verify", row=found.seq, reason=found.reason.value
        )
    if (found.size, found.head) != (manifest.audit_size, manifest.audit_head):
        raise BackupInvalidError("the audit log in the backup is not the one that its manifest names")


def _audit_row(values: Mapping[str, object]) -> AuditRow:
    seq, body, leaf = values["seq"], values["body"], values["leaf_sha256"]
    assert isinstance(seq, int)
    assert isinstance(body, bytes)
    return AuditRow(seq=seq, body=body, leaf_sha256=Sha256Hex(str(leaf)))


def _signed(values: Mapping[str, object]) -> SignedBody:
    body, signature = values["body"], values["signature"]
    assert isinstance(body, bytes)
    assert isinstance(signature, bytes)
    return SignedBody(body=body, signature=signature)


def _secrets(archive: ArchiveReader, options: RestoreOptions) -> dict[str, bytes]:
    if options.keys_folder is not None:
        files = {
            f"keys/{path.name}": path.read_bytes() for path in sorted(options.keys_folder.iterdir()) if path.is_file()
        }
        if not files:
            raise BackupUnreadableError("the folder of keys is empty", folder=str(options.keys_folder))
        return files
    if SEALED_KEYS not in archive.names:
        raise BackupUnreadableError("the backup was made without keys; name a copy of them with --keys")
    if options.passphrase is None:
        raise BackupUnreadableError("the keys are sealed; name the passphrase's file with --passphrase-file")
    return open_files(archive.read(SEALED_KEYS), options.passphrase)


def _check_signing_key(secrets: Mapping[str, bytes], manifest: _Manifest) -> None:
    try:
        signer = EcdsaSigner(private_key_from_pem(secrets.get(f"keys/{SIGNING_KEY}", b"")))
    except PkiError as error:
        raise BackupUnreadableError("the signing key is not among the keys, or is none") from error
    if signer.spki_der != manifest.signing_spki:
        raise BackupUnreadableError("the keys are of another coordinator than the backup")


def _write_files(
    archive: ArchiveReader, workplace: Path, secrets: Mapping[str, bytes], options: RestoreOptions
) -> tuple[Installation, Keys]:
    config = archive.read(f"files/{CONFIG_FILE}").decode()
    if options.database_url is not None:
        config = _with_database(config, options.database_url)
    write_new_file(workplace / CONFIG_FILE, config.encode(), mode=0o644)
    write_new_file(workplace / ROOT_CERTIFICATE, archive.read(f"files/{ROOT_CERTIFICATE}"), mode=0o644)
    installation = open_installation(workplace / CONFIG_FILE)
    installation.keys_directory.mkdir(mode=0o700, parents=True)
    for name, content in secrets.items():
        folder, _, file = name.rpartition("/")
        if folder == "keys" and file and "/" not in file and file not in (".", ".."):
            mode = 0o644 if file.endswith(".pem") and not file.endswith(".key.pem") else 0o600
            write_new_file(installation.keys_directory / file, content, mode=mode)
    password = installation.settings.database.password_file
    if password is not None and DATABASE_PASSWORD in secrets and not (workplace / password).exists():
        write_new_file(workplace / password, secrets[DATABASE_PASSWORD], mode=0o600)
    return installation, installation.load_keys()


def _with_database(config: str, url: str) -> str:
    changed, n_changed = _URL_LINE.subn(lambda found: f"{found.group(1)} {url}", config, count=1)
    return changed if n_changed else f"{config.rstrip()}\n\ndatabase:\n  url: {url}\n"


def _write_blobs(archive: ArchiveReader, installation: Installation, *, report: Report) -> int:
    store = installation.open_blobs()
    names = [name for name in archive.names if name.startswith("blobs/")]
    for name in names:
        _write_blob(store, archive.iter_chunks(name), name.removeprefix("blobs/"))
    report(f"blobs: {len(names)}")
    return len(names)


def _write_blob(store: BlobStore, chunks: Iterator[bytes], name: str) -> None:
    """Store a blob under its name, of whichever kind, once its bytes are known to be those of that name."""
    found, partial = BlobNameDigest(), f"{UNRESUMED}{secrets.token_hex(16)}"
    writer = store.open_partial(partial)
    try:
        for chunk in found.watch(chunks):
            writer.append(chunk)
        if not found.is_of(name):
            raise BlobDigestMismatchError("the bytes do not have the announced digest", expected=name[:64])
        writer.finish(sha256=name)
    finally:
        writer.close()
        store.discard_partial(partial)


def _write_rows(archive: ArchiveReader, database: Database, manifest: _Manifest, *, report: Report) -> int:
    if inspect(database.engine).get_table_names():
        raise RestoreTargetError("the database is not empty; make an empty one", url=_safe_url(database))
    # The schema of the backup first: rows fit it exactly. Then what a newer version's migrations make of them.
    migrate(database.engine, manifest.revision)
    n_rows = 0
    present = set(archive.names)
    with database.engine.begin() as connection:
        for table in backed_up_tables():
            member = f"tables/{table.name}.jsonl"
            if member in present:
                with archive.open(member) as lines:
                    n_rows += insert_lines(connection, table, iter(lines))
    migrate(database.engine)
    report(f"rows: {n_rows}")
    return n_rows


def _safe_url(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=True)
