"""Where the demonstration keeps everything, and which programs it calls. Knows paths and names, starts nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from wardround.errors import NotFoundError, UsageInvalidError

DEFAULT_STUDY = "phenotype-definitions"
_KEPT = ("release", "logs", "summary.json", "run.yaml")
"""What stays of a work folder that the user did not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the user typed; what is None is as the study says. ``data``: a folder that some studies need."""

    study: str = DEFAULT_STUDY
    sites: int | None = None
    rounds: int | None = None
    seed: int | None = None
    data: Path | None = None
    work_dir: Path | None = None
    models_dir: Path | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """How each program is called; a test puts another one in the place of one of them."""

    coordinator: tuple[str, ...] = (sys.executable, "-m", "coordinator")
    site: tuple[str, ...] = (sys.executable, "-m", "site_agent")
    trainer: tuple[str, ...] = (sys.executable, "-m", "site_agent.training")
    python: tuple[str, ...] = (sys.executable,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The source tree: studies and the converter of base models are not part of the installed package."""

    root: Path

    @classmethod
    def of_this_package(cls) -> Checkout:
        """The tree that this package runs from, else the present folder.

        Raises:
            NotFoundError: neither holds studies.
        """
        for root in (Path(__file__).resolve().parents[2], Path.cwd()):
            if (root / "examples").is_dir():
                return cls(root=root)
        raise NotFoundError(
            "there are no studies here", advice="Run this in a checkout of Wardround, for example: make demo"
        )

    @property
    def examples_dir(self) -> Path:
        """The studies."""
        return self.root / "examples"

    @property
    def models_dir(self) -> Path:
        """Where converted base models are kept between demonstrations."""
        return self.root / ".wardround" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """One demonstration's folder. Invariant: it was empty or absent before."""

    root: Path
    is_named: bool

    @classmethod
    def create(cls, options: DemoOptions, checkout: Checkout, *, now: datetime) -> Workspace:
        """Make the folder: the one that the user named, else a new one of the checkout.

        Raises:
            UsageInvalidError: the named folder is not empty.
        """
        named = options.work_dir
        root = named if named is not None else checkout.root / ".wardround" / "demo" / now.strftime("%Y%m%d-%H%M%S")
        root = root.absolute()
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageInvalidError(
                f"the work folder {root} exists and is not empty",
                advice="Name a new folder with --work-dir, or remove it.",
            )
        workspace = cls(root=root, is_named=named is not None)
        for folder in (root, workspace.logs, workspace.data, workspace.sites):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return workspace

    @property
    def logs(self) -> Path:
        """What each process wrote."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """The datasets, one file a site."""
        return self.root / "data"

    @property
    def sites(self) -> Path:
        """The state folders of the sites."""
        return self.root / "sites"

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    @property
    def adapter(self) -> Path:
        """Layout and initial state of the adapter."""
        return self.root / "adapter"

    @property
    def run_file(self) -> Path:
        """The run's specification."""
        return self.root / "run.yaml"

    @property
    def release(self) -> Path:
        """The downloaded release."""
        return self.root / "release"

    def of_first_run(self) -> Workspace:
        """Where a run that comes before the study's own keeps its specification, adapter and release."""
        folder = self.root / "first-run"
        folder.mkdir(exist_ok=True, mode=0o700)
        return Workspace(root=folder, is_named=self.is_named)

    @property
    def base_models(self) -> Path:
        """Base models that are this demonstration's own."""
        return self.root / "base-models"

    @property
    def summary_file(self) -> Path:
        """What ``--json`` prints."""
        return self.root / "summary.json"

    def site_dir(self, name: str) -> Path:
        """One site's state folder."""
        return self.sites / name

    def discard_state(self) -> None:
        """Remove keys, databases and datasets; release, logs and summary stay."""
        for entry in self.root.iterdir():
            if entry.name in _KEPT:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def child_environment(environment: Mapping[str, str], checkout: Checkout) -> dict[str, str]:
    """What the programs of the demonstration see: no setting of the user's own installation reaches them.

    The numeric libraries stay off the network: everything they need is on this machine.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("WARDROUND_")}
    path = os.pathsep.join(part for part in (str(checkout.root), kept.get("PYTHONPATH", "")) if part)
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
