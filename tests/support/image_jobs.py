"""Job directories of the tasks on images: a tiny CLIP, a manifest, a run's specification, and the adapter v0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import DataFile, JobKind
from tests.support.training_jobs import bound_task, fill_job

CLASSES = [
    {"name": "red cell", "prompts": ["a photo of a red blood cell", "an erythrocyte"]},
    {"name": "white cell", "prompts": ["a photo of a white blood cell", "a leukocyte"]},
    {"name": "platelet", "prompts": ["a photo of a platelet"]},
]

ADAPTER_TASK = {"kind": "image-text-adapter", "classes": CLASSES}
CONTRASTIVE_TASK = {
    "kind": "image-text-contrastive",
    "classes": [
        {**one, "terms": terms}
        for one, terms in zip(CLASSES, (["erythrocyte"], ["leukocyte", "neutrophil"], ["thrombocyte"]), strict=True)
    ],
}
ADAPTERS = {"image-text-adapter": "attention", "image-text-contrastive": "joint-projection"}


def image_spec_document(
    base_model_sha256: str, task: Mapping[str, object], **sections: Mapping[str, object]
) -> dict[str, object]:
    """A run on a tiny CLIP; ``sections`` overrides keys of a section."""
    document: dict[str, object] = {
        "apiVersion": "wardround/v1",
        "kind": "Run",
        "name": "tiny-images",
        "purpose": "a test",
        "task": dict(task),
        "base_model": {"name": "tiny-clip", "sha256": base_model_sha256},
        "adapter": {"kind": ADAPTERS[str(task["kind"])]},
        "data": {"dataset": "tiny"},
        "local": {"steps": 4, "batch_size": 6, "max_length": 8, "learning_rate": 0.01, "seed": 7},
        "aggregation": {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}},
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3},
        "secure_aggregation": {"required": True, "suite": "SA1", "min_cohort": 3},
        "privacy": {"clip_norm": 100.0, "weight_cap": 10000, "mechanism": "none"},
        "compression": {"kind": "none"},
        "evaluation": {"every": 1, "metrics": ["loss", "accuracy"], "holdout_fraction": 0.25, "max_records": 16},
        "rounds": 3,
    }
    for name, keys in sections.items():
        section = document[name]
        assert isinstance(section, dict)
        document[name] = {**section, **keys}
    return document


def bound_image_spec(
    model_folder: Path, task: Mapping[str, object], **sections: Mapping[str, object]
) -> tuple[RunSpec, AdapterLayout, PublicState]:
    """A run with the digests of its adapter filled in, its layout and its adapter v0."""
    from site_agent.training.model_files import digest_model_folder

    return bound_task(image_spec_document(digest_model_folder(model_folder), task, **sections), model_folder)


def make_image_job(
    folder: Path,
    *,
    model_folder: Path,
    manifest: Path,
    task: Mapping[str, object] = ADAPTER_TASK,
    kind: JobKind = JobKind.TRAIN,
    seed: int = 11,
    round_index: int = 0,
    state: PublicState | None = None,
    **sections: Mapping[str, object],
) -> RunSpec:
    """Fill a job directory as an agent does."""
    spec, layout, initial = bound_image_spec(model_folder, task, **sections)
    data = DataFile(path=str(manifest), format="image-manifest")
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
