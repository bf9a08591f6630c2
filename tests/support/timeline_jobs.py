"""A vocabulary, a base and coded rows for tests of timelines."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import DataFile, JobKind
from tests.support.training_jobs import bound_task, fill_job, spec_document

CODES = tuple(f"AE/TERM {letter}" for letter in "ABCDEFGH")
SECRET = "Xylophone-4711"


def write_vocabulary(path: Path, codes: tuple[str, ...] = CODES) -> Path:
    path.write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
    return path


def make_base(folder: Path, *, seed: int = 7) -> Path:
    from site_agent.training.timeline_base import TimelineShape, make_timeline_base

    vocabulary = write_vocabulary(folder.with_suffix(".txt"))
    shape = TimelineShape(layers=1, heads=2, width=16, max_length=32)
    make_timeline_base(vocabulary, out=folder, shape=shape, seed=seed)
    return folder


def write_rows(path: Path, n_patients: int, *, seed: int = 1, codes: tuple[str, ...] = CODES) -> Path:
    """Patients with five to eight codes on rising days, in random order of rows."""
    generator = random.Random(seed)
    lines = []
    for number in range(n_patients):
        chosen = generator.sample(codes, generator.randint(5, len(codes)))
        lines += [
            f"{SECRET}-{number},2019-{1 + place:02d}-{generator.randint(1, 28):02d},{code},AE,{'FM'[number % 2]}"
            for place, code in enumerate(chosen)
        ]
    generator.shuffle(lines)
    path.write_text("patient_id,time,code,source,sex\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def timeline_document(base_sha256: str, vocabulary_sha256: str, **sections: Mapping[str, object]) -> dict[str, object]:
    """A run on a timeline base; ``task`` and ``adapter`` replace their sections, others change keys of theirs."""
    whole = {name: sections.pop(name) for name in ("task", "adapter") if name in sections}
    document = spec_document(base_sha256, **sections)
    timeline = {"kind": "concept-timeline", "vocabulary_sha256": vocabulary_sha256}
    document.update({"task": timeline, "adapter": {"kind": "full"}, **whole})
    local = document["local"]
    assert isinstance(local, dict)
    local["max_length"] = min(int(local["max_length"]), 32)
    return document


def bound(document: dict[str, object], base: Path) -> tuple[RunSpec, AdapterLayout, PublicState]:
    """A run with its adapter's digests, its layout and adapter v0."""
    return bound_task(document, base)


def make_timeline_job(
    folder: Path,
    document: dict[str, object],
    *,
    base: Path,
    rows: Path,
    kind: JobKind = JobKind.TRAIN,
    data_format: str = "timeline-rows",
) -> RunSpec:
    """Fill a job directory as an agent does."""
    spec, layout, state = bound(document, base)
    fill_job(folder, spec, layout, state, base=base, data=DataFile(path=str(rows), format=data_format), kind=kind)
    return spec
