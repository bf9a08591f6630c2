"""The hospital's configuration: ``site.yaml``, with every key overridable as ``WARDROUND_SECTION__KEY``.

Only composition roots (the command line, the daemon) read this; every other room receives plain values. Secrets are
never here: they lie in files whose places ``SiteFolder`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from fl_protocol.ids import IdentifierInvalidError, sha256_hex_from_text, site_id_from_text
from site_agent.errors import ProxyInvalidError, SiteAgentError
from site_agent.folder import SiteFolder
from site_agent.link.proxy import check_proxy_setting

ENV_PREFIX = "WARDROUND_"


class SettingsInvalidError(SiteAgentError):
    """The configuration cannot be used; ``faults`` names every key that is wrong."""

    code = "settings-invalid"

    def __init__(self, place: Path, faults: tuple[str, ...]) -> None:
        """Keep all faults."""
        super().__init__(f"{place.name}: {'; '.join(faults)}")
        self.faults = faults


class SettingsMissingError(SettingsInvalidError):
    """There is no ``site.yaml``: nobody has enrolled in this folder."""

    code = "settings-missing"


def _site_name(value: str) -> str:
    try:
        return site_id_from_text(value)
    except IdentifierInvalidError as error:
        raise ValueError(error.message) from error


def _digest(value: str) -> str:
    try:
        return sha256_hex_from_text(value.lower().removeprefix("sha256:").replace(":", ""))
    except IdentifierInvalidError as error:
        raise ValueError(error.message) from error


def _process_count(value: object) -> object:
    """``auto``, or a number as YAML or the environment has it; said in one sentence where it is neither."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and value.isascii() and value.isdigit()):
        value = int(str(value))
        if value >= 1:
            return value
    elif value == "auto":
        return value
    message = "must be a number of at least 1, or auto"
    raise ValueError(message)


def _proxy(value: str | None) -> str | None:
    try:
        return None if value is None else check_proxy_setting(value)
    except ProxyInvalidError as error:
        raise ValueError(error.message) from error


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CoordinatorSettings(_Section):
    """Where the coordinator is, and the way to it; ``enrol`` writes it."""

    address: str | None = None
    server_name: str | None = None
    fallback_address: str | None = None
    enrolment_address: str | None = None
    proxy: Annotated[str | None, AfterValidator(_proxy)] = None
    proxy_credentials_file: Path | None = None


class RunnerMount(_Section):
    """A folder of data or base models that a trainer's container is given, read-only."""

    source: str
    target: str


class RunnerSettings(_Section):
    """How training jobs are run. What a kind does not use, it ignores; docs/operating/runners.md has the table."""

    kind: Literal["process", "spool", "docker", "kubernetes"] = "process"
    jobs_dir: Path | None = None
    threads: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_process_count)] = 1
    timeout_s: float = Field(default=86_400.0, gt=0)
    idle_timeout_s: float = Field(default=1_800.0, gt=0)
    absent_after_s: float = Field(default=120.0, gt=0)
    checkpoint_every_s: float = Field(default=30.0, ge=0)
    image: str | None = None
    gpus: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    memory_gb: float = Field(default=16.0, gt=0)
    engine: str | None = None
    allow_root_socket: bool = False
    jobs_source: str | None = None
    mounts: tuple[RunnerMount, ...] = ()
    user: str = Field(default="10001:10001", pattern=r"^[0-9]+:[0-9]+$")
    runtime: str | None = None
    namespace: str | None = None
    service_account: str = "default"
    node_selector: dict[str, str] = {}
    pending_timeout_s: float = Field(default=900.0, gt=0)

    @property
    def is_trainer_elsewhere(self) -> bool:
        """Whether data and base models are seen by the trainer only."""
        return self.kind != "process"


class BaseModelSettings(_Section):
    """Where the folder of a base model lies on this machine."""

    path: Path


class MetricsSettings(_Section):
    """Numbers for the hospital's own Prometheus, over plain HTTP; off until a port is named."""

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=0, le=65535)


class TracingSettings(_Section):
    """Where this site's spans go, for the hospital's own eyes; nothing is told where ``endpoint`` is null."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^@\s]+$")
    ca_file: Path | None = None


class LogSettings(_Section):
    """How much is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class SiteSettings(BaseSettings):
    """Everything that a site is configured by. Relative paths are relative to the state folder."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    coordinator: CoordinatorSettings = CoordinatorSettings()
    policy: Path = Path("policy.yaml")
    peers: dict[Annotated[str, AfterValidator(_site_name)], Annotated[str, AfterValidator(_digest)]] = {}
    runner: RunnerSettings = RunnerSettings()
    base_models: dict[str, BaseModelSettings] = {}
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()

    _root: Path = PrivateAttr(default=Path())

    @classmethod
    def from_document(cls, state_dir: Path, document: Mapping[str, object]) -> SiteSettings:
        """Settings of one state folder; which folder is never the environment's choice once it was named.

        Raises:
            ValidationError: keys are unknown or wrong.
        """
        settings = cls.model_validate(document)
        settings._root = state_dir.absolute()  # noqa: SLF001 - its own class
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment stands above the file: a container overrides one key and mounts the rest."""
        _ = settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings)

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute."""
        return self._root

    @property
    def folder(self) -> SiteFolder:
        """Where everything lies."""
        return SiteFolder(root=self.state_dir)

    @property
    def policy_path(self) -> Path:
        """The policy file, absolute."""
        return self.folder.root / self.policy

    @property
    def proxy_credentials_path(self) -> Path | None:
        """The file with the proxy's user and password, absolute."""
        file = self.coordinator.proxy_credentials_file
        return None if file is None else self.folder.root / file

    @property
    def jobs_dir(self) -> Path:
        """The folder that agent and trainer share, absolute."""
        configured = self.runner.jobs_dir
        return self.folder.jobs_dir if configured is None else self.folder.root / configured

    def base_model_path(self, name: str) -> Path | None:
        """The folder of a base model, absolute; None where the name is not configured."""
        configured = self.base_models.get(name)
        return None if configured is None else self.folder.root / configured.path


def load_settings(state_dir: Path) -> SiteSettings:
    """Read ``site.yaml`` in the state folder and what the environment says over it.

    Raises:
        SettingsMissingError: there is no such file.
        SettingsInvalidError: it is no YAML mapping, or keys are unknown or wrong; all are listed.
    """
    place = SiteFolder(root=state_dir).site_yaml
    document = _read_document(place)
    try:
        return SiteSettings.from_document(state_dir, document)
    except ValidationError as error:
        faults = tuple(_fault(tuple(detail["loc"]), detail["type"], detail["msg"]) for detail in error.errors())
        raise SettingsInvalidError(place, faults) from error
    except SettingsError as error:
        raise SettingsInvalidError(place, (f"the environment: {error}",)) from error


def _read_document(place: Path) -> dict[str, object]:
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        advice = "is not there; 'wardround-site enrol' makes it, or name the folder with --state-dir"
        raise SettingsMissingError(place, (advice,)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalidError(place, (f"cannot be read: {error}",)) from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsInvalidError(place, (f"is no YAML: {' '.join(str(error).split())}",)) from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SettingsInvalidError(place, ("is not a mapping of keys to values",))
    # A section whose every line is a comment is an empty one.
    return {key: value for key, value in document.items() if value is not None}


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in location if part != "[key]")
    if kind == "extra_forbidden":
        return f"{path}: is not a known key"
    return f"{path}: {message.removeprefix('Value error, ')}"
