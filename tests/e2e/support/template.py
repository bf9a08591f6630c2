"""A federation that is set up once and copied for each test: initialised, enrolled, registered, and never started.

What takes long is done by the programs themselves, once a session: keys, enrolment, datasets, initial adapters, and an
undisturbed run of each study, whose adapter every disturbed run has to reach bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.support.tiny_model import make_tiny_model
from wardround.client.run_upload import InitialAdapter, read_initial_adapter, with_adapter
from wardround.demo.coordinator_host import start_coordinator
from wardround.demo.processes import Supervisor
from wardround.demo.site_host import SiteHost
from wardround.demo.workspace import Checkout, DemoOptions, Programs, Workspace, child_environment
from wardround.documents import text_of

SITES = ("st-mary", "charite", "ucsf", "karolinska", "rigshospitalet")
RECORD_COUNTS = {"st-mary": 56, "charite": 61, "ucsf": 71, "karolinska": 75, "rigshospitalet": 82}
"""Records of each site: every choice of none, one or two of each has another sum, so what was counted is seen."""

CHECKOUT = Checkout(root=Path(__file__).resolve().parents[3])
ENVIRONMENT = child_environment(os.environ, CHECKOUT)
DATASET = "tiny-definitions"
PURPOSE = "Try what breaks with a model that knows nothing"
MODEL_NAME = "tiny"
_MAX_RANK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What a run is about. ``changes`` sets keys of its RunSpec, each by its path."""

    name: str
    rounds: int = 2
    rank: int = 4
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    steps: int = 4
    sites: tuple[str, ...] = SITES[:3]
    quorum: int = 3
    round_deadline_s: float = 120
    phase_deadline_s: float = 60
    changes: tuple[tuple[str, object], ...] = ()

    def run_spec(self, base_model_sha256: str) -> dict[str, object]:
        """The RunSpec, without the digests of its adapter."""
        spec: dict[str, Any] = {
            "apiVersion": "wardround/v1",
            "kind": "Run",
            "name": self.name,
            "purpose": PURPOSE,
            "task": {"kind": "instruction-tuning", "template": "chat"},
            "base_model": {"name": MODEL_NAME, "sha256": base_model_sha256},
            "adapter": {"kind": "lora", "rank": self.rank, "alpha": 8, "targets": list(self.targets)},
            "data": {"dataset": DATASET, "min_records": 50},
            "local": {
                "steps": self.steps,
                "batch_size": 2,
                "max_length": 96,
                "learning_rate": 2.0e-2,
                "schedule": "constant",
                "seed": 7,
            },
            "aggregation": {"algorithm": "fedavg-lora"},
            "cohort": {
                "sites": list(self.sites),
                "quorum": self.quorum,
                "round_deadline_s": self.round_deadline_s,
                "phase_deadline_s": self.phase_deadline_s,
            },
            "secure_aggregation": {"min_cohort": 3},
            "privacy": {"clip_norm": 20.0, "weight_cap": 10000},
            "evaluation": {"holdout_fraction": 0.1, "max_records": 8},
            "rounds": self.rounds,
        }
        for path, value in self.changes:
            *parents, key = path.split(".")
            section = spec
            for parent in parents:
                section = section.setdefault(parent, {})
            section[key] = value
        return spec


SMALL = Study(name="small")
BIG = Study(
    name="big",
    rounds=1,
    rank=_MAX_RANK,
    steps=2,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    phase_deadline_s=150,
    round_deadline_s=300,
)
"""An upload of four megabytes, four chunks and a bit, so that a line can break in the middle of it."""

BIG_UPLOAD_BYTES = 4 * 1024 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
"""Four bytes a weight; two layers; rank times (in + out) of each target of the tiny model."""


@dataclass(slots=True, kw_only=True)
class Template:
    """The folders to copy, and what each study needs besides."""

    root: Path
    base_model: Path
    base_model_sha256: str
    adapters: dict[str, InitialAdapter] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        return self.root / "work" / "coordinator"

    def site(self, name: str) -> Path:
        return self.root / "work" / "sites" / name

    def spec_of(self, study: Study) -> tuple[dict[str, object], InitialAdapter]:
        """The study's RunSpec and initial adapter, which depends on the adapter's shape alone."""
        spec = study.run_spec(self.base_model_sha256)
        shape = f"{study.rank}-{'-'.join(study.targets)}"
        if shape not in self.adapters:
            self.adapters[shape] = self._make_adapter(spec, shape)
        return with_adapter(spec, self.adapters[shape]), self.adapters[shape]

    def _make_adapter(self, spec: Mapping[str, object], shape: str) -> InitialAdapter:
        run_file, out = self.root / f"{shape}.yaml", self.root / f"adapter-{shape}"
        run_file.write_text(yaml.safe_dump(dict(spec), sort_keys=False))
        with Supervisor(self.root, ENVIRONMENT) as supervisor:
            words = ("init-adapter", "--run-spec", str(run_file), "--base-model", str(self.base_model))
            supervisor.run_json("init-adapter", (*Programs().trainer, *words, "--out", str(out), "--json"))
        return read_initial_adapter(out)


WriteData = Callable[[str, Path], Path]
"""Writes a site's records below the folder and tells the file."""


def make_template(root: Path, *, database_url: str | None = None, write_data: WriteData | None = None) -> Template:
    """Set up one coordinator and five sites, by their own programs, in an empty folder (and an empty database)."""
    base_model = root / "models" / MODEL_NAME
    make_tiny_model(base_model)
    workspace = Workspace.create(DemoOptions(work_dir=root / "work"), CHECKOUT, now=datetime.now(UTC))
    programs = Programs()
    database = {} if database_url is None else {"WARDROUND_DATABASE__URL": database_url}
    with Supervisor(workspace.logs, {**ENVIRONMENT, **database}) as supervisor:
        digest = supervisor.run_json("digest", (*programs.trainer, "digest-model", str(base_model), "--json"))
        template = Template(root=root, base_model=base_model, base_model_sha256=text_of(digest, "base_model_sha256"))
        spec = BIG.run_spec(template.base_model_sha256)
        files = {name: (write_data or _write_data)(name, workspace.data) for name in SITES}
        sites = [
            SiteHost(
                name=name,
                folder=workspace.site_dir(name),
                data_file=file,
                supervisor=supervisor,
                programs=programs,
            )
            for name, file in files.items()
        ]
        host = start_coordinator(workspace, supervisor, programs)
        with contextlib.closing(host), ThreadPoolExecutor(max_workers=3) as pool:
            pins = dict(zip(SITES, pool.map(lambda site: site.enrol(host.client), sites), strict=True))
            list(pool.map(lambda site: _prepare(site, spec, pins, base_model), sites))
    return template


def _write_data(name: str, folder: Path) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records_of(name)))
    return file


def _prepare(site: SiteHost, spec: Mapping[str, object], pins: Mapping[str, str], base_model: Path) -> None:
    site.configure(spec, pins=pins, base_model_dir=base_model)
    # A policy that names neither permits every one: the studies of the suites go by several.
    place = site.folder / "policy.yaml"
    policy = yaml.safe_load(place.read_text())
    place.write_text(yaml.safe_dump({k: v for k, v in policy.items() if k not in {"algorithms", "local_rules"}}))
    site.register_dataset(spec, purposes=[str(spec["purpose"])])


def records_of(site: str) -> list[dict[str, str]]:
    number = SITES.index(site) + 1
    return [
        {
            "id": f"T{number}:{index}",
            "prompt": f"Define sign {number}-{index}.",
            "completion": f"It is a sign {number}-{index} of organ {number}.",
        }
        for index in range(RECORD_COUNTS[site])
    ]
