"""The folder of one coordinator: made whole by ``init`` or not at all, opened by everything else.

    coordinator.yaml   settings        keys/       0700: root, signing, release and enrolment keys, each 0600
    coordinator.db     rows            root.pem    the consortium's root certificate, for everybody
    blobs/             content         admin.token 0600: the first admin's token; hand it over and delete it

Part of the composition root: knows settings, keys, database and the services that make the first admin.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from sqlalchemy import select
from sqlalchemy.engine import URL, make_url

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.blobs.store import BlobStore
from coordinator.ca.authority import (
    CertificateAuthority,
    ServerIdentity,
    create_enrolment_identity,
    create_root,
)
from coordinator.ca.key_files import load_key, read_file, read_private_file, write_new_file
from coordinator.ca.slot_files import ROOT_KEY, SlotFiles
from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import migrate
from coordinator.db.models import User
from coordinator.db.tx import PATIENCE_S, Database
from coordinator.default_file import DEFAULT_FILE
from coordinator.hand_over import hand_over
from coordinator.new_folder import new_folder
from coordinator.oidc.documents import HttpsFetcher
from coordinator.oidc.provider import IdentityProvider
from coordinator.oidc.rules import OidcRules
from coordinator.services.checkpoint_audit import checkpoint_audit
from coordinator.services.permissions import Role
from coordinator.services.resources import Addresses, Resources, TokenRules
from coordinator.services.tokens import TokenRequest, create_token
from coordinator.services.users import add_user
from coordinator.settings import (
    DEFAULT_DATABASE_URL,
    BlobKind,
    CoordinatorSettings,
    SettingsInvalidError,
    default_metrics_port,
    load_settings,
)
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate
from fl_protocol.signing.keys import EcdsaSigner

CONFIG_FILE = "coordinator.yaml"
ROOT_CERTIFICATE = "root.pem"
ADMIN_TOKEN = "admin.token"  # noqa: S105 # a file's name
SERVE_FILE = "serve.json"
SIGNING_KEY = "signing.key.pem"
_RELEASE_KEY = "release.key.pem"
_ENROLMENT_KEY = "enrolment.key.pem"
_ENROLMENT_CERTIFICATE = "enrolment.pem"


class InstallationExistsError(WardroundError):
    """The database has another coordinator's users, and nothing of it is overwritten."""

    code = "installation-exists"


class DatabaseRootInvalidError(WardroundError):
    """The file that should say whom to believe as the database's server says nothing."""

    code = "database-root-invalid"


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
class Keys:
    """All keys of a coordinator, loaded."""

    authority: CertificateAuthority
    signer: EcdsaSigner
    release_signer: EcdsaSigner
    enrolment: ServerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A coordinator's folder and settings. Relative paths in the settings are relative to the folder."""

    directory: Path
    settings: CoordinatorSettings

    @property
    def keys_directory(self) -> Path:
        """Where the private keys are."""
        return self.directory / self.settings.keys.directory

    @property
    def slot_files(self) -> SlotFiles:
        """Who issues certificates, and which roots are believed."""
        return SlotFiles(self.keys_directory, published_root=self.directory / ROOT_CERTIFICATE)

    @property
    def blobs_directory(self) -> Path:
        """Where the blobs are."""
        return self.directory / self.settings.blobs.directory

    @property
    def serve_file(self) -> Path:
        """Says where a running coordinator listens."""
        return self.directory / SERVE_FILE

    def database_url(self) -> str:
        """The database's address, with the password from its file.

        Raises:
            KeyFileMissingError, KeyFileExposedError: the password's file is missing or open to all.
        """
        url: URL = make_url(self.settings.database.url)
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            url = url.set(database=str(self.directory / str(url.database)))
        if self.settings.database.password_file is not None:
            path = self.directory / self.settings.database.password_file
            url = url.set(password=read_private_file(path).decode().strip())
        return url.render_as_string(hide_password=False)

    def database_trust(self) -> ssl.SSLContext | None:
        """How the database's server proves who it is; None where nobody said.

        Raises:
            KeyFileMissingError: the certificate is not there.
            DatabaseRootInvalidError: the file holds none.
        """
        named = self.settings.database.root_file
        if named is None:
            return None
        path = self.directory / named
        try:
            return ssl.create_default_context(cadata=read_file(path).decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise DatabaseRootInvalidError("database.root_file holds no certificate (PEM)", path=str(path)) from error

    def open_database(self, *, patience_s: float = PATIENCE_S) -> Database:
        """The database, which may still lack its tables."""
        engine = engine_from_url(
            self.database_url(), pool_size=self.settings.database.pool_size, trust=self.database_trust()
        )
        return Database(engine, patience_s=patience_s)

    def migrate_database(self) -> None:
        """Bring the database to this version's schema, however long a step may take.

        Raises:
            DatabaseUnavailableError: it does not answer.
        """
        engine = engine_from_url(self.database_url(), answer_timeout_s=None, trust=self.database_trust())
        try:
            migrate(engine)
        finally:
            engine.dispose()

    def open_blobs(self) -> BlobStore:
        """Where the blobs are, as the settings say. An object store is not spoken to yet.

        Raises:
            KeyFileMissingError, KeyFileExposedError: the credentials' file is missing or open to all.
            BlobStoreUnavailableError: the credentials or the CA file cannot be used.
        """
        blobs = self.settings.blobs
        if blobs.kind is BlobKind.FOLDER:
            return FilesystemBlobStore(self.blobs_directory)
        # Here, so that a coordinator with a folder does not load the S3 library.
        from coordinator.blobs.s3 import S3BlobStore, S3Options, open_s3_client

        s3 = blobs.s3
        assert s3.bucket is not None, "the settings name a bucket for this kind"
        credentials = None if s3.credentials_file is None else self.directory / s3.credentials_file
        if credentials is not None:
            read_private_file(credentials)
        options = S3Options(
            endpoint_url=s3.endpoint_url,
            region=s3.region,
            ca_file=None if s3.ca_file is None else self.directory / s3.ca_file,
            credentials_file=credentials,
            profile=s3.profile,
        )
        return S3BlobStore(open_s3_client(options), bucket=s3.bucket, prefix=s3.prefix)

    def identity_provider(self) -> IdentityProvider | None:
        """The configured identity provider, which is not spoken to yet.

        Raises:
            SettingsInvalidError: its CA file holds no certificate.
        """
        oidc = self.settings.oidc
        if oidc.issuer is None:
            return None
        assert oidc.audience is not None, "the settings name an audience with an issuer"
        ca_file = None if oidc.ca_file is None else self.directory / oidc.ca_file
        try:
            fetcher = HttpsFetcher(ca_file=ca_file)
        except (OSError, ssl.SSLError) as error:
            fault = f"oidc.ca_file: {ca_file} holds no certificate that can be read"
            raise SettingsInvalidError((fault,), path=self.directory / CONFIG_FILE) from error
        rules = OidcRules(
            issuer=oidc.issuer,
            audience=oidc.audience,
            roles_claim=oidc.roles_claim,
            role_map=dict(oidc.role_map),
            keys_host=None if oidc.keys_host is None else oidc.keys_host.lower(),
            skew_s=oidc.clock_skew_s,
        )
        return IdentityProvider(rules, fetcher)

    def load_keys(self) -> Keys:
        """Read all keys.

        Raises:
            CaError: a file is missing, open to all, or holds something else.
        """
        folder = self.keys_directory
        return Keys(
            authority=CertificateAuthority.of_slots(self.slot_files.load()),
            signer=EcdsaSigner(load_key(folder / SIGNING_KEY)),
            release_signer=EcdsaSigner(load_key(folder / _RELEASE_KEY)),
            enrolment=ServerIdentity(
                certificate_pem=read_file(folder / _ENROLMENT_CERTIFICATE),
                key_pem=read_private_file(folder / _ENROLMENT_KEY),
            ),
        )

    def resources(
        self,
        *,
        database: Database,
        keys: Keys,
        clock: Clock,
        addresses: Addresses,
        wake_driver: Callable[[], None] = lambda: None,
        wake_sites: Callable[[], None] = lambda: None,
        forget_identities: Callable[[], None] = lambda: None,
        is_driver_alive: Callable[[], bool] | None = None,
    ) -> Resources:
        """What the edge services work with."""
        return Resources(
            db=database,
            blobs=self.open_blobs(),
            authority=keys.authority,
            enrolment_certificate_pem=keys.enrolment.certificate_pem,
            signer=keys.signer,
            release_signer=keys.release_signer,
            clock=clock,
            addresses=addresses,
            code_lifetime_s=self.settings.enrolment.code_lifetime_s,
            site_lifetime_s=self.settings.identity.site_certificate_s,
            check_in_s=self.settings.identity.check_in_s,
            max_blob_bytes=self.settings.blobs.max_bytes,
            token_rules=TokenRules(
                default_lifetime_s=self.settings.tokens.default_lifetime_s,
                max_lifetime_s=self.settings.tokens.max_lifetime_s,
            ),
            is_start_by_another=self.settings.governance.four_eyes,
            is_release_signed_by_two=self.settings.governance.dual_signature,
            signature_max_age_s=self.settings.governance.signature_max_age_s,
            identity_provider=self.identity_provider(),
            wake_driver=wake_driver,
            wake_sites=wake_sites,
            forget_identities=forget_identities,
            is_driver_alive=is_driver_alive,
        )


def open_installation(config: Path) -> Installation:
    """Read the settings of the coordinator whose file this is.

    Raises:
        SettingsInvalidError: see ``load_settings``.
    """
    return Installation(directory=config.resolve().parent, settings=load_settings(config))


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
    write_new_file(folder / _RELEASE_KEY, pem_from_private_key(generate_private_key()), mode=0o600)
    write_new_file(folder / _ENROLMENT_KEY, enrolment.key_pem, mode=0o600)
    write_new_file(folder / _ENROLMENT_CERTIFICATE, enrolment.certificate_pem, mode=0o644)
    write_new_file(installation.directory / ROOT_CERTIFICATE, pem_from_certificate(root), mode=0o644)
