"""What ``doctor`` was asked to look at, and what it reads the world by: tests put other clocks and disks in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from site_agent.doctor.trainer_sight import TrainerStanding
from site_agent.enrolment.code import EnrolmentCode
from site_agent.enrolment.identity_file import SiteIdentity, is_enrolled, load_identity
from site_agent.folder import SiteFolder
from site_agent.jobs.machine_sight import MachineSight
from site_agent.settings import SiteSettings, load_settings
from site_agent.state.disk_space import free_bytes

if TYPE_CHECKING:
    from site_agent.doctor.walks import Walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was named on the command line; it stands above ``site.yaml``.

    Attributes:
        coordinator: ``host:port`` of the gateway.
        enrolment: ``host:port`` of the enrolment listener.
        code: of an invitation; only its half that names a certificate is used, and nothing of it is sent.
        proxy: a URL, ``none``, or None for what ``site.yaml`` or the environment says.
        proxy_credentials_file: as ``coordinator.proxy_credentials_file``.
    """

    coordinator: str | None = None
    enrolment: str | None = None
    code: EnrolmentCode | None = None
    proxy: str | None = None
    proxy_credentials_file: Path | None = None

    @property
    def names_an_address(self) -> bool:
        """Whether there is somewhere to look."""
        return self.coordinator is not None or self.enrolment is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One look at one machine."""

    folder: SiteFolder
    clock: Callable[[], datetime]
    environment: Mapping[str, str]
    asked: Asked = field(default_factory=Asked)
    free_bytes: Callable[[Path], int] = free_bytes
    trainer: Callable[[], TrainerStanding] = TrainerStanding
    """How the trainer stands; asked for more than once, so whoever makes the scene keeps the answer."""
    walks: Callable[[], tuple[Walk, ...]] = lambda: ()
    """The ways to the coordinator, likewise walked once."""

    @property
    def is_enrolled(self) -> bool:
        """Whether this folder has an identity."""
        return is_enrolled(self.folder)

    @property
    def has_settings(self) -> bool:
        """Whether there is a ``site.yaml``; enrolment makes it, and it may be written before."""
        return self.folder.site_yaml.exists()

    def settings(self) -> SiteSettings:
        """What ``site.yaml`` says; where there is none yet, the defaults.

        Raises:
            SettingsInvalidError: it is there and cannot be used.
        """
        if not self.has_settings:
            return SiteSettings.from_document(self.folder.root, {})
        return load_settings(self.folder.root)

    def sight(self) -> MachineSight | None:
        """The trainer's word on its machine; None where it said nothing."""
        return self.trainer().sight

    def identity(self) -> SiteIdentity:
        """Who this site is. Raises NotEnrolledError and others of ``load_identity``."""
        return load_identity(self.folder)
