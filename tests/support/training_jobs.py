"""Job directories for the trainer's tests: a tiny model, some records, a run's specification, and the adapter v0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import (
    GLOBAL_FILE,
    LAYOUT_FILE,
    BaseModelFolder,
    DataFile,
    DeviceChoice,
    JobKind,
    JobSpec,
    read_document,
    write_document,
    write_file,
    write_job,
)

SECRET = "Xylophone-4711"
"""Stands in every record; nothing that a trainer says of a failure may hold it."""


def write_records(path: Path, n_records: int) -> Path:
    """A dataset whose records differ in length."""
    lines = [
        json.dumps({"id": f"r{k}", "prompt": f"Say {k}, {SECRET}.", "completion": f"It is {'so ' * (k % 5)}{k}."})
        for k in range(n_records)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_preferences(path: Path, n_records: int) -> Path:
    """Pairs of answers that differ in length, and of which the chosen one always says the same."""
    lines = [
        json.dumps(
            {
                "id": f"r{k}",
                "prompt": f"Say {k}, {SECRET}.",
                "chosen": f"It is {k}.",
                "rejected": f"No {'no ' * (k % 4)}{k}!",
            }
        )
        for k in range(n_records)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_texts(path: Path, n_records: int) -> Path:
    """Texts of a patient each two, different in length."""
    lines = [
        json.dumps({"id": f"r{k}", "text": f"{SECRET} was {'very ' * (k % 5)}well.", "patient_id": f"p{k // 2}"})
        for k in range(n_records)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def spec_document(base_model_sha256: str, **sections: Mapping[str, object]) -> dict[str, object]:
    """A run on the tiny model; ``sections`` overrides keys of a section."""
    document: dict[str, object] = {
        "apiVersion": "wardround/v1",
        "kind": "Run",
        "name": "tiny",
        "purpose": "a test",
        "task": {"kind": "instruction-tuning", "template": "chat"},
        "base_model": {"name": "tiny", "sha256": base_model_sha256},
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]},
        "data": {"dataset": "tiny"},
        "local": {"steps": 3, "batch_size": 2, "max_length": 128, "learning_rate": 0.01, "seed": 7},
        "aggregation": {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}},
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3},
        "secure_aggregation": {"required": True, "suite": "SA1", "min_cohort": 3},
        "privacy": {"clip_norm": 10.0, "weight_cap": 10000, "mechanism": "none"},
        "compression": {"kind": "none"},
        "evaluation": {"every": 1, "metrics": ["loss"], "holdout_fraction": 0.25, "max_records": 8},
        "rounds": 3,
    }
    for name, keys in sections.items():
        section = document[name]
        assert isinstance(section, dict)
        # Another kind has keys of its own.
        document[name] = dict(keys) if "kind" in keys else {**section, **keys}
    return document


def bound_spec(model_folder: Path, **sections: Mapping[str, object]) -> tuple[RunSpec, AdapterLayout, PublicState]:
    """A run with the digests of its adapter filled in, its layout and its adapter v0."""
    from site_agent.training.adapter_io import initial_adapter
    from site_agent.training.causal_model import layout_without_weights
    from site_agent.training.model_files import digest_model_folder

    spec = parse_run_spec(spec_document(digest_model_folder(model_folder), **sections))
    layout = layout_without_weights(model_folder, spec)
    state = initial_adapter(layout, spec.local.seed)
    return bind_adapter(spec, layout_sha256=layout.digest(), initial_sha256=state.digest()), layout, state


def make_job(
    folder: Path,
    *,
    model_folder: Path,
    records: Path,
    kind: JobKind = JobKind.TRAIN,
    seed: int = 11,
    round_index: int = 0,
    state: PublicState | None = None,
    data_format: str = "jsonl",
    **sections: Mapping[str, object],
) -> RunSpec:
    """Fill a job directory as an agent does."""
    spec, layout, initial = bound_spec(model_folder, **sections)
    data = DataFile(path=str(records), format=data_format)
    fill_job(
        folder,
        spec,
        layout,
        state or initial,
        base=model_folder,
        data=data,
        kind=kind,
        seed=seed,
        round_index=round_index,
    )
    return spec


def fill_job(
    folder: Path,
    spec: RunSpec,
    layout: AdapterLayout,
    state: PublicState,
    *,
    base: Path,
    data: DataFile,
    kind: JobKind = JobKind.TRAIN,
    seed: int = 11,
    round_index: int = 0,
) -> None:
    """Fill a job directory as an agent does, for a run of any task."""
    folder.mkdir(parents=True)
    write_document(folder / LAYOUT_FILE, layout.to_document())
    write_file(folder / GLOBAL_FILE, state.to_bytes())
    job = JobSpec(
        job_id=folder.name,
        kind=kind,
        data=data,
        seed=seed,
        timeout_s=60.0,
        run_id="run-" + "a" * 26,
        round_index=round_index,
        run_spec=spec.to_document(),
        base_model=BaseModelFolder(path=str(base), sha256=spec.base_model.sha256),
        threads=1,
        device=DeviceChoice.CPU,
    )
    write_job(folder, job)


def bound_task(document: Mapping[str, object], base: Path) -> tuple[RunSpec, AdapterLayout, PublicState]:
    """A run of any task with the digests of its adapter filled in, its layout and its adapter v0."""
    from site_agent.training.adapter_io import initial_adapter
    from site_agent.training.tasks import TASKS

    spec = parse_run_spec(document)
    layout = TASKS[spec.task.kind].layout_without_weights(base, spec)
    state = initial_adapter(layout, spec.local.seed)
    return bind_adapter(spec, layout_sha256=layout.digest(), initial_sha256=state.digest()), layout, state


def reopen_job(folder: Path, job: JobSpec, **changes: object) -> None:
    """Write a job's specification again, changed."""
    write_job(folder, replace(job, **changes))


def layout_of(folder: Path) -> AdapterLayout:
    """The adapter's layout as it lies in a job directory."""
    return AdapterLayout.from_document(read_document(folder / LAYOUT_FILE))
