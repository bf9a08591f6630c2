"""The folder of one coordinator, opened by everything but ``init``, which makes it whole or not at all.

    coordinator.yaml   settings        keys/       0700: root, signing, release and enrolment keys, each 0600
    coordinator.db     rows            root.pem    the consortium's root certificate, for everybody
    blobs/             content         admin.token 0600: the first admin's token; hand it over and delete it

Part of the composition root: knows settings, keys and database.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.blobs.store import BlobStore
from coordinator.ca.authority import (
    CertificateAuthority,
    ServerIdentity,
)
from coordinator.ca.key_files import load_key, read_file, read_private_file
from coordinator.ca.slot_files import SlotFiles
from coordinator.db.engines import engine_from_url
from coordinator.db.migrate import migrate
from coordinator.db.tx import PATIENCE_S, Database
from coordinator.oidc.documents import HttpsFetcher
from coordinator.oidc.provider import IdentityProvider
from coordinator.oidc.rules import OidcRules
from coordinator.services.resources import Addresses, Resources, TokenRules
from coordinator.settings import (
    BlobKind,
    CoordinatorSettings,
    SettingsInvalidError,
    load_settings,
)
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.signing.keys import EcdsaSigner

CONFIG_FILE = "coordinator.yaml"
ROOT_CERTIFICATE = "root.pem"
ADMIN_TOKEN = "admin.token"  # noqa: S105 # a file's name
SERVE_FILE = "serve.json"
SIGNING_KEY = "signing.key.pem"
RELEASE_KEY = "release.key.pem"
ENROLMENT_KEY = "enrolment.key.pem"
ENROLMENT_CERTIFICATE = "enrolment.pem"


class DatabaseRootInvalidError(WardroundError):
    """The file that should say whom to believe as the database's server says nothing."""

    code = "database-root-invalid"


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
            release_signer=EcdsaSigner(load_key(folder / RELEASE_KEY)),
            enrolment=ServerIdentity(
                certificate_pem=read_file(folder / ENROLMENT_CERTIFICATE),
                key_pem=read_private_file(folder / ENROLMENT_KEY),
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
