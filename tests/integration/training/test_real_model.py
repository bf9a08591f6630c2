"""The demo's real base model: its digest, and that training leaves it as it is. Skipped where it is not converted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import JobResult
from site_agent.training.closing import close_job
from site_agent.training.model_files import digest_model_folder
from site_agent.training.shelf import ModelShelf
from tests.support.training_jobs import make_job

ROOT = Path(__file__).parents[3]
MODEL = Path(os.environ.get("WARDROUND_BASE_MODEL", ROOT / ".wardround" / "models" / "smollm2-135m-instruct"))

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(not (MODEL / "manifest.json").is_file(), reason="run 'make model', or set WARDROUND_BASE_MODEL"),
]

RECORDS = [
    ("Arachnodactyly", "Abnormally long and slender fingers."),
    ("Proteinuria", "Increased levels of protein in the urine."),
    ("Hypertelorism", "Interpupillary distance more than 2 SD above the mean."),
    ("Nystagmus", "Rhythmic, involuntary oscillations of one or both eyes."),
]


def digest_of(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        if ".lora_" not in name:
            digest.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_digest_is_that_of_the_conversion() -> None:
    assert digest_model_folder(MODEL) == json.loads((MODEL / "manifest.json").read_text())["sha256"]


def test_two_steps_lower_the_loss_and_leave_the_base_bit_identical(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    lines = [{"id": name, "prompt": f"Define {name}.", "completion": text} for name, text in RECORDS]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = yaml.safe_load((ROOT / "examples" / "phenotype-definitions" / "run.yaml").read_bytes())
    sections = {"adapter": study["adapter"], "local": {"steps": 3, "batch_size": 4, "learning_rate": 0.002}}
    shelf = ModelShelf()
    make_job(tmp_path / "job", model_folder=MODEL, records=records, evaluation={"holdout_fraction": 0.0}, **sections)
    spec = make_job(
        tmp_path / "again", model_folder=MODEL, records=records, evaluation={"holdout_fraction": 0.0}, **sections
    )
    first = close_job(tmp_path / "job", shelf=shelf)
    assert isinstance(first, JobResult)
    assert shelf._key is not None
    compute = shelf._key.compute
    model = shelf.take(MODEL, spec, sha256=spec.base_model.sha256, compute=compute).module
    trained = digest_of(model.state_dict())
    fresh = ModelShelf().take(MODEL, spec, sha256=spec.base_model.sha256, compute=compute).module
    assert digest_of(fresh.state_dict()) == trained
    losses = [json.loads(line)["loss"] for line in (tmp_path / "job" / "progress.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]
    update = tensors_from_bytes((tmp_path / "job" / "payload.safetensors").read_bytes())["adapter_update"]
    assert update.shape == (460_800,)
    assert np.isfinite(update).all()
