"""``wardround-coordinator backup``, ``restore``, ``acknowledge-restore`` and ``token``: their sentences and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from coordinator.ca.key_files import read_private_file, replace_file, write_new_file
from coordinator.installation import open_installation
from coordinator.services.epochs import EpochView, acknowledge_restore
from coordinator.services.resources import Addresses
from coordinator.services.tokens import TokenRequest, create_token
from coordinator.upkeep.backup import make_backup
from coordinator.upkeep.last_backup import note_backup
from coordinator.upkeep.restore import RestoreOptions, restore_backup
from fl_protocol.clock import Clock

Answer = tuple[Mapping[str, object], list[str]]
Report = Callable[[str], None]


def backup_answer(config: Path, file: Path, *, passphrase_file: Path | None, clock: Clock, report: Report) -> Answer:
    """Back up, and say what was written.

    Raises:
        BackupError: see ``make_backup``.
    """
    passphrase = None if passphrase_file is None else read_private_file(passphrase_file).strip()
    made = make_backup(open_installation(config), file, clock=clock, passphrase=passphrase, report=report)
    note_backup(config.resolve().parent, made_at=made.made_at)
    document = {
        "file": str(made.path),
        "made_at": made.made_at.isoformat(),
        "manifest_sha256": made.manifest_sha256,
        "rows": made.n_rows,
        "blobs": made.n_blobs,
        "bytes": made.n_bytes,
        "audit": {"size": made.audit_size, "head": made.audit_head},
        "epoch": made.epoch,
        "has_keys": made.has_keys,
    }
    keys = "keys sealed under the passphrase" if made.has_keys else "WITHOUT keys: keep a copy of them elsewhere"
    return document, [
        f"Wrote {made.path}: {made.n_rows} rows, {made.n_blobs} blobs, {made.n_bytes} bytes; {keys}",
        f"Manifest SHA-256 {made.manifest_sha256}",
        f"Audit log {made.audit_size} rows, head {made.audit_head}",
    ]


def restore_answer(
    file: Path, directory: Path, *, passphrase_file: Path | None, options: RestoreOptions, clock: Clock, report: Report
) -> Answer:
    """Restore, and say what to do next.

    Raises:
        BackupError: see ``restore_backup``.
    """
    passphrase = None if passphrase_file is None else read_private_file(passphrase_file).strip()
    options = RestoreOptions(**{**asdict(options), "passphrase": passphrase})
    made = restore_backup(file, directory, clock=clock, options=options, report=report)
    serve = f"wardround-coordinator serve --config {made.directory}/coordinator.yaml"
    acknowledge = f"wardround-coordinator acknowledge-restore --by NAME --config {made.directory}/coordinator.yaml"
    document = {
        "directory": str(made.directory),
        "epoch": made.epoch,
        "backup_made_at": made.backup_made_at.isoformat(),
        "audit": {"size": made.audit_size, "head": made.audit_head},
        "rows": made.n_rows,
        "blobs": made.n_blobs,
        "next": [serve, acknowledge],
    }
    return document, [
        f"Restored {made.directory} from the backup of {made.backup_made_at.isoformat(timespec='seconds')}",
        f"This is epoch {made.epoch}. What was recorded after row {made.audit_size} of the audit log is lost here.",
        "Rounds that were open are aborted; no round opens before you acknowledge the restore.",
        "",
        "Next:",
        f"  {serve}",
        "  (wait until the sites have polled; `runs show` says what they had seen)",
        f"  {acknowledge}",
    ]


def acknowledge_answer(config: Path, *, by: str, clock: Clock) -> Answer:
    """Acknowledge the restore, and say what was lost.

    Raises:
        NotFoundError: there was none.
    """
    database = open_installation(config).open_database()
    try:
        now = clock.now()
        view = database.run_tx(
            "acknowledge-restore", lambda session: acknowledge_restore(session, actor=f"user:{by}", now=now)
        )
    finally:
        database.dispose()
    return epoch_document(view), [view.sentence(), "Runs go on."]


def token_answer(config: Path, file: Path, *, user: str, clock: Clock) -> Answer:
    """Make a token for a user who has none any more, and say where it is.

    Raises:
        NotFoundError: there is no such user.
        KeyFileExistsError: the file is there; nothing is overwritten and no token is made.
        OSError: it cannot be written; no token is made.
    """
    # Before the token, which nobody would have where it cannot be written, and which would work all the same.
    write_new_file(file, b"", mode=0o600)
    try:
        return _token_into(file, config, user=user, clock=clock)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _token_into(file: Path, config: Path, *, user: str, clock: Clock) -> Answer:
    installation = open_installation(config)
    database = installation.open_database()
    try:
        resources = installation.resources(
            database=database,
            keys=installation.load_keys(),
            clock=clock,
            addresses=Addresses(gateway="", enrolment=""),
        )
        made = create_token(resources, TokenRequest(user=user, label="made on the host"), actor="coordinator")
    finally:
        database.dispose()
    replace_file(file, made.value.encode() + b"\n", mode=0o600)
    assert made.view.expires_at is not None, "every token that is made has an end"
    ends = made.view.expires_at.isoformat()
    return (
        {"file": str(file), "token_id": made.view.token_id, "user_id": made.view.user_id, "expires_at": ends},
        [f"Wrote a token of {user} to {file}; it ends at {ends}", "Hand it over and delete the file."],
    )


def epoch_document(view: EpochView) -> dict[str, object]:
    """An epoch for programs."""
    return {
        "epoch": view.epoch,
        "started_at": view.started_at.isoformat(),
        "backup_made_at": view.backup_made_at.isoformat(),
        "restored_size": view.restored_size,
        "restored_head": view.restored_head,
        "acknowledged_at": None if view.acknowledged_at is None else view.acknowledged_at.isoformat(),
        "acknowledged_by": view.acknowledged_by,
        "lost_at_least": view.n_lost,
        "heads": [asdict(head) for head in view.heads],
    }
