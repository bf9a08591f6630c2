"""``wardround-coordinator init``: a coordinator's folder, made whole or not at all.

Part of the composition root: knows settings, keys, database and the services that make the first admin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from sqlalchemy import select

from coordinator.ca.authority import (
    create_enrolment_identity,
    create_root,
)
from coordinator.ca.key_files import write_new_file
from coordinator.ca.slot_files import ROOT_KEY
from coordinator.db.models import User
from coordinator.default_file import DEFAULT_FILE
from coordinator.hand_over import hand_over
from coordinator.installation import (
    ADMIN_TOKEN,
    CONFIG_FILE,
    ENROLMENT_CERTIFICATE,
    ENROLMENT_KEY,
    RELEASE_KEY,
    ROOT_CERTIFICATE,
    SIGNING_KEY,
    Installation,
    open_installation,
)
from coordinator.new_folder import new_folder
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.permissions import Role
from coordinator.services.resources import Addresses
from coordinator.services.tokens import TokenRequest, create_token
from coordinator.services.users import add_user
from coordinator.settings import (
    DEFAULT_DATABASE_URL,
    default_metrics_port,
)
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate


class InstallationExistsError(WardroundError):
    """The database has another coordinator's users, and nothing of it is overwritten."""

    code = "installation-exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the listeners listen; 0 is chosen at each start."""

    rest: int = 8443
    gateway: int = 8444
    enrolment: int = 8445
    gateway_http1: int = 8446
    enrolment_http1: int = 8447


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What ``init`` made."""

    config: Path
    admin_token_file: Path
    root_certificate: Path
    root_sha256: Sha256Hex


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseChoice:
    """Which database a new coordinator is to have.

    Attributes:
        url: as in the settings.
        password_file: an existing file with the password; it is named in the settings by its absolute path, not copied.
        root_file: an existing file with the certificate behind the server's; likewise.
    """

    url: str = DEFAULT_DATABASE_URL
    password_file: Path | None = None
    root_file: Path | None = None


def install(
    directory: Path,
    *,
    consortium: str,
    ports: Ports,
    clock: Clock,
    database: DatabaseChoice | None = None,
    hand_over_to: Path | None = None,
) -> Installed:
    """Make a coordinator's folder, whole or not at all.

    A database that is a server must be empty, or already have a coordinator's tables and no users.

    The folder may be there and empty; ``hand_over_to`` gets the admin's token, and a copy of the root certificate.

    Raises:
        FolderNotEmptyError: the folder is there and not empty.
        InstallationExistsError: the database has another coordinator's users.
        DatabaseUnavailableError: the database does not answer.
        KeyFileExistsError: the folder to hand over to holds a token already.
    """
    directory = directory.absolute()
    with new_folder(directory, last=CONFIG_FILE) as workplace:
        text = _settings_text(consortium=consortium, ports=ports, database=database or DatabaseChoice())
        write_new_file(workplace / CONFIG_FILE, text.encode(), mode=0o644)
        root_sha256 = _fill(workplace, consortium=consortium, clock=clock)
        token = directory / ADMIN_TOKEN
        if hand_over_to is not None:
            token = hand_over(workplace / ADMIN_TOKEN, workplace / ROOT_CERTIFICATE, to=hand_over_to.absolute())
    return Installed(
        config=directory / CONFIG_FILE,
        admin_token_file=token,
        root_certificate=directory / ROOT_CERTIFICATE,
        root_sha256=root_sha256,
    )


def _settings_text(*, consortium: str, ports: Ports, database: DatabaseChoice) -> str:
    def quoted(text: str) -> str:
        return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1000).strip()

    password_file = database.password_file
    return DEFAULT_FILE.format(
        consortium=quoted(consortium),
        database_url=database.url if database.url == DEFAULT_DATABASE_URL else quoted(database.url),
        password_file="null" if password_file is None else quoted(str(password_file.absolute())),
        root_file="null" if database.root_file is None else quoted(str(database.root_file.absolute())),
        rest_port=ports.rest,
        gateway_port=ports.gateway,
        enrolment_port=ports.enrolment,
        http1_port=ports.gateway_http1,
        enrolment_http1_port=ports.enrolment_http1,
        metrics_port=default_metrics_port(ports.rest),
    )


def _fill(folder: Path, *, consortium: str, clock: Clock) -> Sha256Hex:
    installation = open_installation(folder / CONFIG_FILE)
    _write_keys(installation, consortium=consortium, clock=clock)
    installation.blobs_directory.mkdir(mode=0o700)
    keys = installation.load_keys()
    installation.migrate_database()
    database = installation.open_database()
    try:
        if database.read("users", lambda session: session.scalars(select(User.user_id).limit(1)).first()) is not None:
            raise InstallationExistsError("the database belongs to another coordinator; name an empty one")
        resources = installation.resources(
            database=database, keys=keys, clock=clock, addresses=Addresses(gateway="", enrolment="")
        )
        admin = add_user(resources, name="admin", roles=[Role.ADMIN], actor="coordinator")
        token = create_token(resources, TokenRequest(user=admin.user_id, label="made by init"), actor="coordinator")
        checkpoint_audit(resources)
    finally:
        database.dispose()
    write_new_file(folder / ADMIN_TOKEN, token.value.encode() + b"\n", mode=0o600)
    return keys.authority.root_sha256


def _write_keys(installation: Installation, *, consortium: str, clock: Clock) -> None:
    folder = installation.keys_directory
    folder.mkdir(mode=0o700)
    now = clock.now()
    root, root_key = create_root(consortium=consortium, now=now)
    enrolment = create_enrolment_identity(now=now)
    write_new_file(folder / ROOT_KEY, pem_from_private_key(root_key), mode=0o600)
    write_new_file(folder / SIGNING_KEY, pem_from_private_key(generate_private_key()), mode=0o600)
    write_new_file(folder / RELEASE_KEY, pem_from_private_key(generate_private_key()), mode=0o600)
    write_new_file(folder / ENROLMENT_KEY, enrolment.key_pem, mode=0o600)
    write_new_file(folder / ENROLMENT_CERTIFICATE, enrolment.certificate_pem, mode=0o644)
    write_new_file(installation.directory / ROOT_CERTIFICATE, pem_from_certificate(root), mode=0o644)
