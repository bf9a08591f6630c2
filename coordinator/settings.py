"""What an operator may set: one commented YAML file, each key overridable as ``WARDROUND_SECTION__KEY``.

Read by the composition root only; every other room gets plain values. A key that does not exist is refused by name, and
secrets are given as paths of files, never as values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import InitSettingsSource

from fl_protocol.errors import WardroundError

ENV_PREFIX = "WARDROUND_"
DEFAULT_DATABASE_URL = "sqlite:///coordinator.db"
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
PerMinute = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsInvalidError(WardroundError):
    """The configuration holds a fault; ``faults`` lists every one with its key."""

    code = "settings-invalid"

    def __init__(self, faults: tuple[str, ...], *, path: Path) -> None:
        """Keep the faults apart from the sentence."""
        super().__init__("; ".join(faults), path=str(path))
        self.faults = faults


def default_http1_port(gateway_port: int) -> int:
    """Where the gateway listens over HTTP/1.1 when nobody says: where its own port is chosen, this one is too."""
    return 0 if gateway_port == 0 else 8446


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For machines or for people."""

    JSON = "json"
    CONSOLE = "console"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DatabaseSettings(_Section):
    """Where rows live."""

    url: str = DEFAULT_DATABASE_URL
    password_file: Path | None = None
    pool_size: Annotated[int, Field(ge=2, le=200)] = 16

    @field_validator("url")
    @classmethod
    def _url_is_of_a_known_database(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql+pg8000://")):
            raise ValueError("a database is sqlite:///file or postgresql+pg8000://user@host/name")
        if "@" in url and ":" in url.partition("://")[2].rpartition("@")[0]:
            raise ValueError("no password in here: put it into a file and name that as database.password_file")
        return url


class BlobKind(StrEnum):
    """What keeps the blobs."""

    FOLDER = "folder"
    S3 = "s3"


class S3Settings(_Section):
    """A bucket of S3-compatible storage. Its keys are in a file or the environment's standard chain, never here."""

    bucket: str | None = None
    prefix: Annotated[str, Field(pattern=r"^$|^[A-Za-z0-9._/-]*[A-Za-z0-9._-]/$")] = ""
    endpoint_url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    region: str = "us-east-1"
    ca_file: Path | None = None
    credentials_file: Path | None = None
    profile: str | None = None


class BlobSettings(_Section):
    """Where blobs live, and how large one may be."""

    kind: BlobKind = BlobKind.FOLDER
    directory: Path = Path("blobs")
    s3: S3Settings = S3Settings()
    max_bytes: Annotated[int, Field(gt=0)] = 4 << 30

    @model_validator(mode="after")
    def _bucket_is_named(self) -> BlobSettings:
        if self.kind is BlobKind.S3 and not self.s3.bucket:
            raise ValueError("kind s3 needs s3.bucket")
        return self


class KeySettings(_Section):
    """Where the private keys live (a folder of files with mode 0600)."""

    directory: Path = Path("keys")


class RestSettings(_Section):
    """The listener for people and their programs."""

    host: str = "127.0.0.1"
    port: Port = 8443
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    max_body_bytes: Annotated[int, Field(gt=0)] = 1 << 20


class GatewaySettings(_Section):
    """The listeners for enrolled sites: mutual TLS, over gRPC and over HTTP/1.1."""

    host: str = "127.0.0.1"
    port: Port = 8444
    advertise: str | None = None
    http1_port: Port | None = 8446
    http1_advertise: str | None = None
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    max_uploads: Annotated[int, Field(gt=0)] = 16

    @model_validator(mode="before")
    @classmethod
    def _second_port_follows_the_first(cls, keys: object) -> object:
        # A file that an earlier version wrote has no such key; where it lets the system choose, so it is here.
        if isinstance(keys, dict) and "http1_port" not in keys and str(keys.get("port")) == "0":
            return {**keys, "http1_port": default_http1_port(0)}
        return keys


class EnrolmentSettings(_Section):
    """The listener for sites that have no certificate yet."""

    host: str = "127.0.0.1"
    port: Port = 8445
    advertise: str | None = None
    code_lifetime_s: Seconds = 7 * 86400.0


class DriverSettings(_Section):
    """The loop that steps runs and rounds."""

    poll_s: Seconds = 0.2
    lease_s: Seconds = 15.0


class RetentionSettings(_Section):
    """What is removed when. How long masked uploads are kept is the runs' own: ``audit_window_s`` in the RunSpec."""

    poll_s: Seconds = 60.0
    orphan_grace_s: Annotated[float, Field(ge=3600)] = 86400.0


class AuditSettings(_Section):
    """The log that is evidence."""

    checkpoint_every: Annotated[int, Field(gt=0)] = 64


class RateLimitSettings(_Section):
    """How often one token may ask, and one address fail to say who it is; each process counts for itself."""

    requests_per_minute: PerMinute = 3000.0
    requests_burst: Annotated[int, Field(ge=1)] = 600
    failures_per_minute: PerMinute = 60.0
    failures_burst: Annotated[int, Field(ge=1)] = 60
    max_tracked: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000


class GovernanceSettings(_Section):
    """What no person may do alone."""

    four_eyes: bool = True


class TokenSettings(_Section):
    """How long bearer tokens live when nobody says, and at most."""

    default_lifetime_s: Seconds = 90 * 86400.0
    max_lifetime_s: Annotated[float, Field(gt=0, le=10 * 366 * 86400.0)] = 366 * 86400.0

    @model_validator(mode="after")
    def _default_is_within_the_longest(self) -> TokenSettings:
        if self.default_lifetime_s > self.max_lifetime_s:
            raise ValueError("default_lifetime_s is longer than max_lifetime_s")
        return self


class LogSettings(_Section):
    """The log that is not evidence."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.JSON


class CoordinatorSettings(BaseSettings):
    """Everything an operator may set. Relative paths are relative to the folder of the file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    consortium: str = "Wardround consortium"
    database: DatabaseSettings = DatabaseSettings()
    blobs: BlobSettings = BlobSettings()
    keys: KeySettings = KeySettings()
    rest: RestSettings = RestSettings()
    gateway: GatewaySettings = GatewaySettings()
    enrolment: EnrolmentSettings = EnrolmentSettings()
    driver: DriverSettings = DriverSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    tokens: TokenSettings = TokenSettings()
    governance: GovernanceSettings = GovernanceSettings()
    rate_limits: RateLimitSettings = RateLimitSettings()
    log: LogSettings = LogSettings()

    @field_validator("consortium")
    @classmethod
    def _consortium_is_named(cls, name: str) -> str:
        if not 1 <= len(name) <= 64:
            raise ValueError("the consortium's name is 1 to 64 characters")
        return name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (which arrives as ``init_settings``); nothing else is read."""
        del settings_cls, dotenv_settings, file_secret_settings
        assert isinstance(init_settings, InitSettingsSource)
        return env_settings, init_settings


def load_settings(path: Path) -> CoordinatorSettings:
    """Read the file and the environment.

    Raises:
        SettingsInvalidError: the file is missing or no YAML mapping, a key is unknown, or a value is of the wrong kind;
            every fault is listed.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsInvalidError(
            ("the file is missing; `wardround-coordinator init` makes it",), path=path
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsInvalidError((f"the file is no YAML: {error}",), path=path) from error
    document = {} if document is None else document
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SettingsInvalidError(("the file must be a mapping of sections",), path=path)
    try:
        return CoordinatorSettings(**document)
    except ValidationError as error:
        faults = tuple(_sentence(dict(fault)) for fault in error.errors())
        raise SettingsInvalidError(faults, path=path) from error


def unknown_environment_sections(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Variables ``WARDROUND_<SECTION>__<KEY>`` whose section is not one of the coordinator's.

    They are reported and not refused, because a site agent on the same machine has sections of its own.
    """
    known = set(CoordinatorSettings.model_fields)
    names = os.environ if environment is None else environment
    return tuple(
        sorted(
            name
            for name in names
            if name.startswith(ENV_PREFIX)
            and "__" in name
            and name.removeprefix(ENV_PREFIX).split("__")[0].lower() not in known
        )
    )


def _sentence(fault: Mapping[str, object]) -> str:
    location = fault.get("loc", ())
    key = ".".join(str(part) for part in location) if isinstance(location, tuple) else str(location)
    if fault.get("type") == "extra_forbidden":
        return f"{key}: this key does not exist"
    return f"{key}: {fault.get('msg', 'is not valid')}"


DEFAULT_FILE = """\
# Wardround coordinator. Every key can be overridden by the environment as WARDROUND_SECTION__KEY,
# for example WARDROUND_GATEWAY__PORT=443. Relative paths are relative to this file. Unknown keys are refused.

consortium: {consortium}          # the organisation named in the root certificate

database:
  # sqlite:///file, or postgresql+pg8000://user@host/name (PostgreSQL 13 or later), which several processes may share
  url: {database_url}
  password_file: {password_file}             # a file that holds the database's password, mode 0600
  pool_size: 16                   # PostgreSQL: the most connections of this process, one more listens

blobs:                            # masked uploads, sums, releases; content-addressed
  kind: folder                    # folder | s3
  directory: blobs                # kind folder; several processes may share it
  s3:                             # kind s3: a bucket of S3-compatible storage, which must exist
    bucket: null
    prefix: ""                    # before every key, such as wardround/
    endpoint_url: null            # of a server that is not Amazon's, such as https://s3.hospital.example
    region: us-east-1
    ca_file: null                 # the certificates behind the server's, where the system does not know them
    credentials_file: null        # in the form of ~/.aws/credentials, mode 0600; the environment's chain when null
    profile: null                 # of that file
  max_bytes: 4294967296           # the largest blob that is accepted

keys:
  directory: keys                 # root, signing, release and enrolment keys; files with mode 0600

rest:                             # for people and their programs: HTTPS, bearer tokens
  host: 127.0.0.1
  port: {rest_port}
  names: [localhost, 127.0.0.1]   # host names and addresses in the certificate
  max_body_bytes: 1048576

gateway:                          # for enrolled sites: gRPC, mutual TLS
  host: 127.0.0.1
  port: {gateway_port}
  advertise: null                 # host:port as sites reach it; the listening address when null
  names: [localhost, 127.0.0.1]
  http1_port: {http1_port}                # the same calls over HTTP/1.1, same mutual TLS: for sites whose network
                                  # breaks HTTP/2; null turns it off
  http1_advertise: null           # host:port as sites reach that one
  max_uploads: 16                 # in flight at once in one process; the next site waits its turn

enrolment:                        # for sites with an enrolment code: gRPC, its certificate is pinned in the code
  host: 127.0.0.1
  port: {enrolment_port}
  advertise: null
  code_lifetime_s: 604800

driver:
  poll_s: 0.2                     # how often it looks for work when nobody wakes it
  lease_s: 15

retention:                        # how long masked uploads are kept is in each RunSpec: audit_window_s
  poll_s: 60                      # how often it looks for rounds whose audit window has closed
  orphan_grace_s: 86400           # before a blob that nothing names, or half an upload, is deleted; at least 3600

audit:
  checkpoint_every: 64            # events between two signed checkpoints

tokens:                           # for people and their programs; each has an end
  default_lifetime_s: 7776000     # 90 days, when whoever makes one does not say
  max_lifetime_s: 31622400        # 366 days

governance:
  four_eyes: true                 # a run is started by another person than the one who created it

rate_limits:                      # of REST, in each process; beyond them: 429 with Retry-After
  requests_per_minute: 3000       # of one token
  requests_burst: 600
  failures_per_minute: 60         # of one address (of 64 bits of IPv6), without a token that works
  failures_burst: 60
  max_tracked: 10000              # tokens and addresses that are remembered

log:
  level: info                     # debug | info | warning | error
  format: json                    # json | console
"""
