"""The checks of what the coordinator keeps: the database and its clock, blobs, disk, the last backup."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.db.migrate import SchemaStanding, head_revision, schema_standing
from coordinator.db.tx import Database
from coordinator.doctor.scene import Scene
from coordinator.replicas import clock_offset
from coordinator.services.check_health import can_record
from coordinator.settings import BlobKind
from coordinator.upkeep.last_backup import read_last_backup
from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found

FAMILY = "what it keeps"
_MIN_FREE_BYTES = 2 << 30
_OLDEST_POSTGRESQL = 130_000
_OLD_BACKUP = timedelta(days=7)

DATABASE_GOOD = Outcome(
    code="database-good", health=Health.OK, means="It answers, has this version's schema, and takes a record."
)
DATABASE_UNREACHABLE = Outcome(
    code="database-unreachable",
    health=Health.FAILED,
    means="It does not answer, or turns the coordinator away.",
    advice="Look at database.url, database.password_file and database.root_file, and whether the server runs.",
)
DATABASE_BEHIND = Outcome(
    code="database-behind",
    health=Health.FAILED,
    means="Its schema is of an earlier version, or it is empty.",
    advice="Run `wardround-coordinator migrate`.",
)
DATABASE_PAST = Outcome(
    code="database-past",
    health=Health.FAILED,
    means="A later version has taken away what this one needs.",
    advice="Install the later version of the coordinator; there is no way back but a backup.",
)
DATABASE_UNWRITABLE = Outcome(
    code="database-unwritable",
    health=Health.FAILED,
    means="It answers, and no event can be recorded in it: its disk is full, it is read-only, or rights are missing.",
    advice="Make room on its disk; see that the server is no standby, and that the user owns the tables.",
)
DATABASE_OLD = Outcome(
    code="database-old",
    health=Health.WARNING,
    means="The PostgreSQL server is older than 13, which nobody mends any more.",
    advice="Move to a PostgreSQL that is maintained; 15 is what the tests run on.",
)


def _database(scene: Scene) -> Iterator[CheckResult]:
    installation = scene.installation
    try:
        database = installation.open_database(patience_s=0.0)
    except (SQLAlchemyError, ImportError, WardroundError) as error:
        yield found("database", DATABASE_UNREACHABLE, f"cannot be opened ({_said(error)})")
        return
    try:
        yield from _judge_database(scene, database)
    except (SQLAlchemyError, ImportError, WardroundError) as error:
        yield found("database", DATABASE_UNREACHABLE, f"cannot be reached ({_said(error)})")
    finally:
        database.dispose()


def _judge_database(scene: Scene, database: Database) -> Iterator[CheckResult]:
    standing = schema_standing(database.engine)
    match standing:
        case SchemaStanding.BEHIND:
            yield found("database", DATABASE_BEHIND, f"its schema is not of this version ({head_revision()})")
            return
        case SchemaStanding.PAST:
            yield found("database", DATABASE_PAST, "its schema is of a later version, without what this one needs")
            return
        case SchemaStanding.CURRENT | SchemaStanding.AHEAD:
            pass
    product, number = _product(database)
    if not can_record(database, scene.clock.now()):
        yield found("database", DATABASE_UNWRITABLE, f"{product}: an event could not be recorded")
    elif database.is_server and number < _OLDEST_POSTGRESQL:
        yield found("database", DATABASE_OLD, f"{product} is old")
    else:
        ahead = ", expanded by a later version" if standing is SchemaStanding.AHEAD else ""
        message = f"{product}, schema {head_revision()}{ahead}; it takes records"
        yield found("database", DATABASE_GOOD, message, product=product)


def _product(database: Database) -> tuple[str, int]:
    """What it is called, and PostgreSQL's number of its version (150004 is 15.4); 0 for SQLite."""

    def ask(session: Session) -> tuple[str, int]:
        if not database.is_server:
            return f"SQLite {session.scalar(text('SELECT sqlite_version()'))}", 0
        number = int(str(session.scalar(text("SHOW server_version_num"))))
        return f"PostgreSQL {number // 10000}.{number % 10000}", number

    return database.read("product", ask)


def _said(error: Exception) -> str:
    return str(error.facts.get("error", error)) if isinstance(error, WardroundError) else type(error).__name__


CLOCK_GOOD = Outcome(code="clock-good", health=Health.OK, means="The database's clock agrees with this machine's.")
CLOCK_DIFFERS = Outcome(
    code="clock-differs",
    health=Health.FAILED,
    means="The database's clock and this machine's differ by more than a third of driver.lease_s.",
    advice="Let both follow a time server: leases are judged by the processes' own clocks, and sites by this one's.",
)


def _clock(scene: Scene) -> Iterator[CheckResult]:
    try:
        database = scene.installation.open_database(patience_s=0.0)
        try:
            offset = clock_offset(database, clock=scene.clock)
        finally:
            database.dispose()
    except (SQLAlchemyError, ImportError, WardroundError):
        # Told by the check of the database.
        return
    if offset is None:
        return
    seconds = offset.total_seconds()
    most = scene.installation.settings.driver.lease_s / 3
    message = f"this machine is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} the database"
    yield found("clock", CLOCK_DIFFERS if abs(seconds) > most else CLOCK_GOOD, message, ahead_by_s=round(seconds, 3))


BLOBS_GOOD = Outcome(code="blobs-good", health=Health.OK, means="A probe was written, read and deleted.")
BLOBS_UNUSABLE = Outcome(
    code="blobs-unusable",
    health=Health.FAILED,
    means="A probe could not be stored.",
    advice="Look at blobs.directory and its rights; for a bucket at blobs.s3, its credentials and its CA file.",
)
BLOBS_ALTERED = Outcome(
    code="blobs-altered",
    health=Health.FAILED,
    means="A probe was read back altered, or is still there after it was deleted.",
    advice="Do not use this store.",
)


def _blobs(scene: Scene) -> Iterator[CheckResult]:
    """Write, read and delete a blob: what the round will do, with the rights that it will have."""
    kind = scene.installation.settings.blobs.kind
    probe = b"wardround doctor " + secrets.token_bytes(16)
    try:
        blobs = scene.installation.open_blobs()
        stored = blobs.put_bytes(probe)
        is_same = blobs.read(stored.sha256) == probe
        blobs.delete(stored.sha256)
        is_gone = not blobs.has(stored.sha256)
    except (WardroundError, OSError) as error:
        yield found("blobs", BLOBS_UNUSABLE, f"{kind.value}: a probe could not be stored: {error}")
        return
    if not is_same or not is_gone:
        detail = "a probe was read back altered" if not is_same else "a probe that was deleted is still there"
        yield found("blobs", BLOBS_ALTERED, f"{kind.value}: {detail}")
    else:
        yield found("blobs", BLOBS_GOOD, f"{kind.value}: a probe was written, read and deleted")


DISK_ENOUGH = Outcome(code="disk-enough", health=Health.OK, means="At least 2 GiB are free.")
DISK_LITTLE = Outcome(
    code="disk-little",
    health=Health.FAILED,
    means="Less than 2 GiB are free.",
    advice="A round of ten sites with 25M parameters needs about 2 GiB: make room, or move it to a larger disk.",
)
FOLDER_MISSING = Outcome(
    code="folder-missing",
    health=Health.FAILED,
    means="The folder of the blobs is not there.",
    advice="Look at blobs.directory, and whether its disk is mounted.",
)


def _disk(scene: Scene) -> Iterator[CheckResult]:
    installation = scene.installation
    folders = {installation.directory: "the coordinator's folder"}
    if installation.settings.blobs.kind is BlobKind.FOLDER:
        folders[installation.blobs_directory] = "the blobs"
    seen: set[int] = set()
    for folder, what in folders.items():
        if not folder.is_dir():
            yield found("disk", FOLDER_MISSING, f"{folder} is not a folder")
            continue
        if (device := folder.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = scene.free_bytes(folder)
        message = f"{free / (1 << 30):.1f} GiB free under {folder}, for {what}"
        yield found("disk", DISK_ENOUGH if free >= _MIN_FREE_BYTES else DISK_LITTLE, message, free_bytes=free)


BACKUP_RECENT = Outcome(code="backup-recent", health=Health.OK, means="The last backup from here is of this week.")
BACKUP_OLD = Outcome(
    code="backup-old",
    health=Health.WARNING,
    means="The last backup from here is older than a week.",
    advice="Run `wardround-coordinator backup FILE`, each night, to another machine.",
)
BACKUP_UNKNOWN = Outcome(
    code="backup-unknown",
    health=Health.WARNING,
    means="No backup was made from this folder, or by other means only.",
    advice="Run `wardround-coordinator backup FILE`, each night, to another machine; the keys are nowhere else.",
)


def _backup(scene: Scene) -> Iterator[CheckResult]:
    made_at = read_last_backup(scene.installation.directory)
    if made_at is None:
        yield found("backup", BACKUP_UNKNOWN, "no backup is known")
        return
    age = scene.clock.now() - made_at
    message = f"the last one was made {made_at:%Y-%m-%d %H:%M} UTC, {age.days} days ago"
    yield found("backup", BACKUP_OLD if age > _OLD_BACKUP else BACKUP_RECENT, message, days=age.days)


CHECKS: tuple[Check[Scene], ...] = (
    Check(
        name="database",
        family=FAMILY,
        looks_at="whether it answers, its version and schema, and whether an event can be recorded",
        outcomes=(
            DATABASE_GOOD,
            DATABASE_UNREACHABLE,
            DATABASE_BEHIND,
            DATABASE_PAST,
            DATABASE_UNWRITABLE,
            DATABASE_OLD,
        ),
        run=_database,
    ),
    Check(
        name="clock",
        family=FAMILY,
        looks_at="the database server's clock against this machine's",
        outcomes=(CLOCK_GOOD, CLOCK_DIFFERS),
        run=_clock,
    ),
    Check(
        name="blobs",
        family=FAMILY,
        looks_at="a blob that is written, read and deleted",
        outcomes=(BLOBS_GOOD, BLOBS_UNUSABLE, BLOBS_ALTERED),
        run=_blobs,
    ),
    Check(
        name="disk",
        family=FAMILY,
        looks_at="room for blobs and for the coordinator's folder",
        outcomes=(DISK_ENOUGH, DISK_LITTLE, FOLDER_MISSING),
        run=_disk,
    ),
    Check(
        name="backup",
        family=FAMILY,
        looks_at="when a backup was made from this folder last",
        outcomes=(BACKUP_RECENT, BACKUP_OLD, BACKUP_UNKNOWN),
        run=_backup,
    ),
)
