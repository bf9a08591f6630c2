"""A job on two processes with gloo: the base in shards, and the same update as one process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from site_agent.jobs.job_dir import PAYLOAD_FILE, JobResult, read_progress, read_result
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import make_job, write_preferences, write_records

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[3]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RUN = (str(Path(__file__).with_name("float32_trainer.py")), "run")
# Three records a batch: one process has two of them and the other one.
LOCAL = {"batch_size": 3, "steps": 2}
PROMPTS = {"kind": "instruction-tuning"}
PAIRS = {"kind": "preference-alignment", "beta": 0.1}
TOLERANCE = 1e-5


def run(job_dir: Path, *before: str, after: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, *before, *RUN, str(job_dir), *after)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    result = read_result(job_dir)
    assert isinstance(result, JobResult)
    return load((job_dir / PAYLOAD_FILE).read_bytes())


@pytest.mark.parametrize("task", [PROMPTS, PAIRS], ids=["prompts", "pairs"])
def test_two_processes_make_the_update_of_one(task: Mapping[str, object], tmp_path: Path) -> None:
    model = tmp_path / "model"
    make_tiny_model(model)
    is_pair = task is PAIRS
    records = (write_preferences if is_pair else write_records)(tmp_path / "records.jsonl", 20)
    made = {}
    # Pairs by torch's launcher, prompts by the program's own workers.
    before, after = (TORCHRUN, ()) if is_pair else ((), ("--processes", "2"))
    for name, words in (("alone", ((), ())), ("shared", (before, after))):
        make_job(
            tmp_path / name,
            model_folder=model,
            records=records,
            data_format="preferences-jsonl" if is_pair else "jsonl",
            task=task,
            local=LOCAL,
            evaluation={"max_records": 3},
        )
        made[name] = run(tmp_path / name, *words[0], after=words[1])
    alone, shared = made["alone"], made["shared"]
    assert alone.keys() == shared.keys()
    for count in ("eval_tokens", "eval_records", "train_tokens"):
        assert int(alone[count][0]) == int(shared[count][0])
    for loss in ("eval_loss_sum", "train_loss_sum"):
        assert float(shared[loss][0]) == pytest.approx(float(alone[loss][0]), rel=TOLERANCE)
    update, expected = shared["adapter_update"], alone["adapter_update"]
    assert np.linalg.norm(update - expected) < 0.01 * np.linalg.norm(expected)
    # One process alone wrote into the job's folder: it tells each step once.
    told = [(line.state, line.step) for line in read_progress(tmp_path / "shared")]
    assert len(set(told)) == len(told)
