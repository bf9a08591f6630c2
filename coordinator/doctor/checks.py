"""Every check of a coordinator that may not run: is everything there that it needs, and what to do where it is not."""

from __future__ import annotations

import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from coordinator.db.migrate import is_current
from coordinator.installation import Installation, open_installation
from coordinator.replicas import clock_offset, running_processes
from coordinator.settings import BlobKind, SettingsInvalidError, unknown_environment_sections
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError

_MIN_FREE_BYTES = 2 << 30
_ROOT_WARNING = timedelta(days=180)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: whether it is well, what was found, and what to do."""

    name: str
    is_well: bool
    detail: str
    advice: str | None = None


def diagnose(config: Path, *, clock: Clock) -> tuple[Finding, ...]:
    """Every check, in the order in which one would ask."""
    try:
        installation = open_installation(config)
    except SettingsInvalidError as error:
        return (Finding(name="configuration", is_well=False, detail="; ".join(error.faults), advice=f"edit {config}"),)
    return tuple(_findings(installation, clock=clock))


def _findings(installation: Installation, *, clock: Clock) -> Iterator[Finding]:
    unknown = unknown_environment_sections()
    detail = "no fault" if not unknown else f"no fault; not the coordinator's: {', '.join(unknown)}"
    yield Finding(name="configuration", is_well=True, detail=detail)
    yield _check_keys(installation, clock=clock)
    yield _check_key_folder(installation)
    yield _check_database(installation, clock=clock)
    if installation.settings.blobs.kind is BlobKind.FOLDER:
        yield _check_disk(installation)
    yield _check_blobs(installation)
    if installation.settings.oidc.issuer is not None:
        yield _check_identity_provider(installation)
    settings = installation.settings
    for name, host, port in (
        ("rest", settings.rest.host, settings.rest.port),
        ("gateway", settings.gateway.host, settings.gateway.port),
        ("enrolment", settings.enrolment.host, settings.enrolment.port),
    ):
        yield _check_port(installation, name=name, host=host, port=port)
    yield _check_http1_port(installation)


def _check_keys(installation: Installation, *, clock: Clock) -> Finding:
    try:
        issuing = installation.load_keys().authority.slots.issuing
    except WardroundError as error:
        return Finding(name="keys", is_well=False, detail=str(error), advice="restore the keys from a backup")
    ends = min(issuing.root.not_valid_after_utc, issuing.certificate.not_valid_after_utc)
    left = ends - clock.now()
    if left < _ROOT_WARNING:
        what = "root" if issuing.certificate == issuing.root else "issuing"
        return Finding(
            name="keys",
            is_well=False,
            detail=f"the {what} certificate ends in {left.days} days",
            advice="rotate it: `ca rotate`, or `ca csr` where the root is offline",
        )
    return Finding(name="keys", is_well=True, detail=f"four keys; the root certificate has {left.days} days left")


def _check_identity_provider(installation: Installation) -> Finding:
    name = "identity provider"
    try:
        provider = installation.identity_provider()
        n_keys = 0 if provider is None else provider.n_keys()
    except WardroundError as error:
        detail = f"{error.facts.get('url', '')} {error.facts.get('why', error)}".strip()
        advice = "look at oidc.issuer, oidc.ca_file and oidc.keys_host, and whether it can be reached from here"
        return Finding(name=name, is_well=False, detail=detail, advice=advice)
    missing = None if n_keys else "it needs an RS256 or ES256 key with a kid"
    return Finding(name=name, is_well=n_keys > 0, detail=f"{n_keys} usable keys", advice=missing)


def _check_key_folder(installation: Installation) -> Finding:
    folder = installation.keys_directory
    loose = [
        path.name
        for path in sorted(folder.glob("*.key.pem"))
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if loose:
        advice = f"chmod 600 {folder}/*.key.pem"
        return Finding(name="permissions", is_well=False, detail=f"others may use {', '.join(loose)}", advice=advice)
    return Finding(name="permissions", is_well=True, detail="the keys are their owner's only")


def _check_database(installation: Installation, *, clock: Clock) -> Finding:
    try:
        database = installation.open_database(patience_s=0.0)
        try:
            is_new = is_current(database.engine)
            offset = clock_offset(database, clock=clock) if is_new else None
        finally:
            database.dispose()
    except (SQLAlchemyError, ImportError, WardroundError) as error:
        said = error.facts.get("error", str(error)) if isinstance(error, WardroundError) else type(error).__name__
        return Finding(
            name="database",
            is_well=False,
            detail=f"cannot be reached ({said})",
            advice="look at database.url and database.password_file, and whether the server runs",
        )
    if not is_new:
        return Finding(
            name="database",
            is_well=False,
            detail="its schema is of another version",
            advice="run `wardround-coordinator migrate`",
        )
    if offset is not None and abs(offset) > timedelta(seconds=installation.settings.driver.lease_s) / 3:
        return Finding(
            name="database",
            is_well=False,
            detail=f"its clock differs from this machine's by {abs(offset.total_seconds()):.1f} s",
            advice="let both follow a time server: leases are judged by the processes' own clocks",
        )
    return Finding(name="database", is_well=True, detail="reachable, with this version's schema")


def _check_disk(installation: Installation) -> Finding:
    folder = installation.blobs_directory
    if not folder.is_dir():
        return Finding(name="disk", is_well=False, detail=f"{folder} is not a folder", advice="look at blobs.directory")
    free = shutil.disk_usage(folder).free
    detail = f"{free / (1 << 30):.1f} GiB free under {folder}"
    advice = None if free >= _MIN_FREE_BYTES else "a round of ten sites with 25M parameters needs about 2 GiB"
    return Finding(name="disk", is_well=free >= _MIN_FREE_BYTES, detail=detail, advice=advice)


def _check_http1_port(installation: Installation) -> Finding:
    gateway = installation.settings.gateway
    if gateway.http1_port is None:
        detail = "turned off: sites whose network breaks HTTP/2 cannot take part"
        return Finding(name="port of gateway http/1.1", is_well=True, detail=detail)
    return _check_port(installation, name="gateway http/1.1", host=gateway.host, port=gateway.http1_port)


def _check_blobs(installation: Installation) -> Finding:
    """Write, read and delete a blob: what the round will do, with the rights that it will have."""
    kind = installation.settings.blobs.kind
    probe = b"wardround doctor " + secrets.token_bytes(16)
    try:
        blobs = installation.open_blobs()
        stored = blobs.put_bytes(probe)
        is_same = blobs.read(stored.sha256) == probe
        blobs.delete(stored.sha256)
        is_gone = not blobs.has(stored.sha256)
    except (WardroundError, OSError) as error:
        advice = "look at blobs.directory" if kind is BlobKind.FOLDER else "look at blobs.s3 and its credentials"
        return Finding(name="blobs", is_well=False, detail=f"a probe could not be stored: {error}", advice=advice)
    if not is_same or not is_gone:
        detail = "a probe was read back altered" if not is_same else "a probe that was deleted is still there"
        return Finding(name="blobs", is_well=False, detail=detail, advice="do not use this store")
    return Finding(name="blobs", is_well=True, detail=f"{kind.value}: a probe was written, read and deleted")


def _check_port(installation: Installation, *, name: str, host: str, port: int) -> Finding:
    label = f"port of {name}"
    if port == 0:
        return Finding(name=label, is_well=True, detail="chosen at each start")
    if running_processes(installation):
        return Finding(name=label, is_well=True, detail=f"{host}:{port}, a coordinator of this folder is running")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                name=label,
                is_well=False,
                detail=f"{host}:{port} cannot be bound ({error.strerror})",
                advice=f"set the port or the host of {name} in the configuration",
            )
    return Finding(name=label, is_well=True, detail=f"{host}:{port} is free")
