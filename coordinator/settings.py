"""What an operator may set: one commented YAML file, each key overridable as ``WARDROUND_SECTION__KEY``.

Read by the composition root only; every other room gets plain values. A key that does not exist is refused by name, and
secrets are given as paths of files, never as values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

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


def default_enrolment_http1_port(enrolment_port: int) -> int:
    """The same of the listener for enrolment."""
    return 0 if enrolment_port == 0 else 8447


def default_metrics_port(rest_port: int) -> int:
    """Where the operators' listener is when nobody says."""
    return 0 if rest_port == 0 else 9464


def _with_second_port(keys: object, default: Callable[[int], int]) -> object:
    """A file that an earlier version wrote names no second port; where it lets the system choose, so it is there."""
    if isinstance(keys, dict) and "http1_port" not in keys and str(keys.get("port")) == "0":
        return {**keys, "http1_port": default(0)}
    return keys


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
    root_file: Path | None = None
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
        return _with_second_port(keys, default_http1_port)


class EnrolmentSettings(_Section):
    """The listeners for sites that have no certificate yet, over gRPC and over HTTP/1.1."""

    host: str = "127.0.0.1"
    port: Port = 8445
    advertise: str | None = None
    http1_port: Port | None = 8447
    code_lifetime_s: Seconds = 7 * 86400.0

    @model_validator(mode="before")
    @classmethod
    def _second_port_follows_the_first(cls, keys: object) -> object:
        return _with_second_port(keys, default_enrolment_http1_port)


class IdentitySettings(_Section):
    """How long sites' certificates live, and how often sites say that they are there."""

    site_certificate_s: Annotated[float, Field(ge=5, le=90 * 86400.0)] = 72 * 3600.0
    check_in_s: Annotated[float, Field(ge=1, le=86400.0)] = 3600.0


class DriverSettings(_Section):
    """The loop that steps runs and rounds."""

    poll_s: Seconds = 0.5
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
    dual_signature: bool = True
    signature_max_age_s: Annotated[float, Field(ge=30, le=3600)] = 300.0


class TokenSettings(_Section):
    """How long bearer tokens live when nobody says, and at most."""

    default_lifetime_s: Seconds = 90 * 86400.0
    max_lifetime_s: Annotated[float, Field(gt=0, le=10 * 366 * 86400.0)] = 366 * 86400.0

    @model_validator(mode="after")
    def _default_is_within_the_longest(self) -> TokenSettings:
        if self.default_lifetime_s > self.max_lifetime_s:
            raise ValueError("default_lifetime_s is longer than max_lifetime_s")
        return self


RoleName = Literal["admin", "study-lead", "privacy-officer", "auditor"]


class OidcSettings(_Section):
    """An identity provider whose bearer tokens are accepted besides our own; none where ``issuer`` is null."""

    issuer: Annotated[str, Field(pattern=r"^https://[^\s/?#@]+(/[^\s?#]*)?$")] | None = None
    audience: Annotated[str, Field(min_length=1)] | None = None
    roles_claim: Annotated[str, Field(min_length=1)] = "roles"
    role_map: dict[str, RoleName] = {}
    ca_file: Path | None = None
    keys_host: Annotated[str, Field(pattern=r"^[^\s/?#@]+$")] | None = None
    clock_skew_s: Annotated[float, Field(ge=0, le=300)] = 60.0

    @model_validator(mode="after")
    def _issuer_has_an_audience_and_roles(self) -> OidcSettings:
        if self.issuer is not None and (self.audience is None or not self.role_map):
            raise ValueError("an issuer needs an audience and a role_map: without them nobody can be let in")
        return self


class MetricsSettings(_Section):
    """The listener for whoever runs the service: plain HTTP, nobody is asked who they are; null turns it off."""

    host: str = "127.0.0.1"
    port: Port | None = 9464


class TracingSettings(_Section):
    """Where spans go; nothing is told, and nothing leaves, where ``endpoint`` is null."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    ca_file: Path | None = None


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
    identity: IdentitySettings = IdentitySettings()
    driver: DriverSettings = DriverSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    tokens: TokenSettings = TokenSettings()
    governance: GovernanceSettings = GovernanceSettings()
    rate_limits: RateLimitSettings = RateLimitSettings()
    oidc: OidcSettings = OidcSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def _metrics_port_follows_the_others(cls, sections: object) -> object:
        """Where REST's port is chosen at each start, this one is too: such coordinators share a machine."""
        if not isinstance(sections, dict):
            return sections
        rest, metrics = sections.get("rest"), sections.get("metrics")
        is_chosen = isinstance(rest, dict) and str(rest.get("port")) == "0"
        if is_chosen and (metrics is None or (isinstance(metrics, dict) and "port" not in metrics)):
            return {**sections, "metrics": {**(metrics or {}), "port": default_metrics_port(0)}}
        return sections

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
