"""Memory that runs out: torch's own error, on a CPU whose address space is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from site_agent.training.collate import Example
from site_agent.training.fitting import is_out_of_memory, training_memory_error
from site_agent.training.task_half import LossSum
from tests.support.training_jobs import SECRET, make_job, write_records

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[4]
TOO_MUCH = 1 << 62

PROGRAM = """
import resource, sys
from pathlib import Path
from site_agent.training.closing import close_job
from site_agent.training.shelf import ModelShelf
import site_agent.training.device as device
device.cpu_flags = frozenset
import torch
torch.set_num_threads(1)
shelf = ModelShelf()
# What a first job loads, of libraries too, would else be counted against what the second one may have.
close_job(Path(sys.argv[1]), shelf=shelf)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
close_job(Path(sys.argv[2]), shelf=shelf)
"""


def examples(n_examples: int) -> list[Example]:
    return [Example(prompt_ids=(1,) * (k + 1), completion_ids=(2,)) for k in range(n_examples)]


def loss_that_needs_memory(room: int) -> tuple[torch.nn.Parameter, list[list[int]], object]:
    parameter, tried = torch.nn.Parameter(torch.ones(1)), list[list[int]]()

    def train_loss(batch: list[Example]) -> LossSum:
        tried.append([example.n_tokens for example in batch])
        if len(batch) > room:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return LossSum(loss=parameter.sum() * len(batch), n_units=len(batch))

    return parameter, tried, train_loss


def test_largest_half_that_fits_is_told_and_leaves_no_gradient() -> None:
    parameter, tried, train_loss = loss_that_needs_memory(room=3)
    error = training_memory_error(train_loss, [parameter], examples(20), batch_size=16)  # type: ignore[arg-type]
    assert error.facts == {"batch_size": 16, "fitting_batch_size": 2}
    # The longest ones, for a batch that fits must fit whatever is drawn.
    assert tried == [[21, 20, 19, 18, 17, 16, 15, 14], [21, 20, 19, 18], [21, 20]]
    assert parameter.grad is None


def test_nothing_that_fits_is_told_as_such() -> None:
    parameter, _, train_loss = loss_that_needs_memory(room=0)
    error = training_memory_error(train_loss, [parameter], examples(4), batch_size=4)  # type: ignore[arg-type]
    assert error.facts == {"batch_size": 4}


def test_another_failure_is_not_taken_for_a_want_of_memory() -> None:
    def train_loss(_batch: object) -> LossSum:
        raise RuntimeError("the kernel is broken")

    with pytest.raises(RuntimeError, match="kernel"):
        training_memory_error(train_loss, [], examples(4), batch_size=4)


def test_torchs_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded as Linux does it")
def test_job_that_needs_too_much_says_which_batch_fits(tmp_path: Path, tiny_model: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, batch_size in ((small, 1), (large, 1024)):
        make_job(
            folder,
            model_folder=tiny_model,
            records=write_records(tmp_path / "d", 40),
            task={"kind": "instruction-tuning", "packing": False},
            local={"batch_size": batch_size, "steps": 1},
        )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", PROGRAM, str(small), str(large)]
    subprocess.run(program, check=True, env=environment, capture_output=True)
    assert json.loads((small / "result.json").read_text())["status"] == "succeeded"
    result = json.loads((large / "result.json").read_text())
    assert result["code"] == "out-of-memory"
    assert result["facts"]["batch_size"] == 1024
    assert 1 <= result["facts"]["fitting_batch_size"] < 1024
    assert SECRET not in json.dumps(result)
