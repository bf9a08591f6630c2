"""The lines under "Use" of a real release's README, run as they are written, for every task that has weights to load.

The release is built, signed, unpacked and verified as any other; its weights are not those that training began from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import site_agent
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.testing.run_specs import SITE_NAMES
from site_agent.training.code_list import make_code_list
from site_agent.training.model_files import digest_model_folder
from site_agent.training.timelines.vocabulary import read_vocabulary
from tests.support.image_jobs import ADAPTER_TASK, CLASSES, CONTRASTIVE_TASK, bound_image_spec
from tests.support.released_run import CompletedRuns, open_resources
from tests.support.timeline_jobs import CODES, bound, make_base, timeline_document, write_vocabulary
from tests.support.tiny_clip import make_tiny_clip, write_image_dataset
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import bound_spec
from wardround.evidence.release_folder import verify_release_folder

pytestmark = pytest.mark.training

VOCABULARY_TASK = {"kind": "concept-vocabulary", "threshold": 3, "min_sites": 2, "site_minimum": 5}
COHORT = {"sites": list(SITE_NAMES), "quorum": 3}


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base model, a run over it, and what the run begins from."""

    base: Path
    spec: RunSpec
    layout: AdapterLayout
    initial: PublicState


def case_of(name: str, folder: Path) -> Case:
    base = folder / "base"
    match name:
        case "image-text-adapter" | "image-text-contrastive":
            make_tiny_clip(base)
            task = ADAPTER_TASK if name == "image-text-adapter" else CONTRASTIVE_TASK
            found = bound_image_spec(base, task, cohort=COHORT)
        case "concept-timeline":
            make_base(base)
            vocabulary = read_vocabulary(base / "vocab.txt")
            document = timeline_document(digest_model_folder(base), vocabulary.sha256, cohort=COHORT)
            found = bound(document, base)
        case "concept-vocabulary":
            made = make_code_list(write_vocabulary(folder / "codes.txt"), out=base)
            document = timeline_document(
                str(made["base_model_sha256"]),
                "0" * 64,
                task=VOCABULARY_TASK,
                adapter={"kind": "published-codes"},
                aggregation={"algorithm": "thresholded-counts"},
                cohort=COHORT,
            )
            found = bound({**document, "rounds": 1}, base)
        case _:
            make_tiny_model(base)
            found = bound_spec(base, cohort=COHORT)
    spec, layout, initial = found
    return Case(base=base, spec=spec, layout=layout, initial=initial)


def released(case: Case, folder: Path) -> Path:
    """The folder of a published release of a run of this kind."""
    resources = open_resources(folder / "coordinator", RealClock())
    try:
        runs = CompletedRuns(resources=resources, document=case.spec.to_document(), layout=case.layout)
        n_weights = case.layout.n_parameters
        values = np.random.default_rng(3).normal(0, 0.3, n_weights).astype(np.float32)
        if case.spec.adapter.kind is AdapterKind.PUBLISHED_CODES:
            values = (np.arange(n_weights) % 2).astype(np.float32)
        runs.complete(initial=case.initial, final=PublicState(version=2, adapter=case.layout.unflatten(values)))
        return runs.unpacked(runs.publish(), folder)
    finally:
        resources.db.dispose()


def run_blocks(readme: str, folder: Path) -> str:
    """Run each block of code under "Use" as a program of its own, in this folder, and give all that they print."""
    use = readme.partition("## Use\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(sh|python)\n(.*?)```", use, flags=re.DOTALL)
    assert blocks
    assert all(language in {"sh", "python"} for language in re.findall(r"```([a-z]+)\n", use))
    root = Path(site_agent.__file__).parents[1]
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": here}
    printed = ""
    for language, code in blocks:
        words = ("sh", "-euc", code) if language == "sh" else (sys.executable, "-c", code)
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        printed += done.stdout
    return printed


@pytest.mark.parametrize(
    ("task", "weights"),
    [
        ("image-text-adapter", "model.safetensors"),
        ("image-text-contrastive", "model.safetensors"),
        ("concept-timeline", "model.safetensors"),
        ("concept-vocabulary", "model.safetensors"),
        ("instruction-tuning", "adapter_model.safetensors"),
    ],
)
def test_lines_of_a_real_release_s_card_run_as_written(task: str, weights: str, tmp_path: Path) -> None:
    case = case_of(task, tmp_path)
    (tmp_path / "coordinator").mkdir()
    release = released(case, tmp_path)
    verify_release_folder(release)
    assert sorted(path.name for path in release.glob("*.safetensors")) == [weights]
    # The reader's own places, under the names that the card has for them.
    (tmp_path / "reader/path/to/this").mkdir(parents=True)
    (tmp_path / "reader/path/to/this/folder").symlink_to(release)
    (tmp_path / "reader/path/to" / case.spec.base_model.name).symlink_to(case.base)
    if task.startswith("image-text"):
        image = write_image_dataset(tmp_path / "images", ["platelet"]).parent / "0.png"
        (tmp_path / "reader/path/to/image.png").symlink_to(image)
    printed = run_blocks((release / "README.md").read_text(), tmp_path / "reader")
    match task:
        case "image-text-adapter" | "image-text-contrastive":
            assert all(str(one["name"]) in printed for one in CLASSES)
        case "concept-timeline":
            shares = dict(line.rsplit(" ", 1) for line in printed.splitlines() if line.startswith("AE/TERM"))
            assert len(shares) == 5
            # The run learned first occurrences: what the timeline holds does not come again.
            assert set(shares) <= set(CODES[1:])
            assert (tmp_path / "reader/model/config.json").is_file()
        case "concept-vocabulary":
            published = (tmp_path / "reader/vocab.txt").read_text().splitlines()
            assert published == list(CODES[1::2])
        case _:
            assert printed == ""
