"""On a processor that multiplies bfloat16: the base is rounded, adapter and loss are not, and training learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import adapter_parameters, load_adapter, read_adapter
from site_agent.training.device import choose_compute, cpu_flags
from site_agent.training.evaluating import evaluate
from site_agent.training.formats.prompt_jsonl import read_prompts
from site_agent.training.progress import ProgressReporter
from site_agent.training.recipe import local_steps, train
from site_agent.training.shelf import ModelShelf
from site_agent.training.task_half import LoadedTask
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples
from tests.support.training_jobs import bound_spec

pytestmark = [pytest.mark.training, pytest.mark.bfloat16]


@pytest.fixture(autouse=True)
def need_bfloat16() -> None:
    if not cpu_flags() & {"amx_bf16", "avx512_bf16"}:
        pytest.skip("this machine's processor does not multiply bfloat16")


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits after rounding to the nearest, ties to even: IEEE 754's rule, on integers."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def base_bits(model: LoadedTask) -> dict[str, np.ndarray]:
    """The frozen parameters' bits, by the names of the file."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter.view(torch.uint16).numpy().copy()
        for name, parameter in model.module.named_parameters()
        if not parameter.requires_grad
    }


def test_base_in_memory_is_the_rounding_of_the_disk_and_training_leaves_it_and_lowers_the_loss(
    tmp_path: Path, tiny_model: Path, records: Path
) -> None:
    spec, layout, state = bound_spec(tiny_model, local={"steps": 20, "learning_rate": 0.02, "batch_size": 4})
    compute = choose_compute(DeviceChoice.CPU)
    assert compute.precision == "bfloat16"
    model = ModelShelf().take(tiny_model, spec, sha256=spec.base_model.sha256, compute=compute)
    load_adapter(model.module, state.adapter, layout=layout)

    on_disk = {
        name: rounded_to_bfloat16(tensor) for name, tensor in load_file(tiny_model / "model.safetensors").items()
    }
    before = base_bits(model)
    assert before.keys() == on_disk.keys()
    for name, bits in on_disk.items():
        np.testing.assert_array_equal(before[name], bits, err_msg=name)
    assert {parameter.dtype for parameter in adapter_parameters(model.module).values()} == {torch.float32}

    everything = read_prompts(records).records
    examples = list(encode_records(everything, model, FitCounts()))
    rule = local_steps(spec, 0)
    drawn = sample_examples(everything, model, n_examples=rule.n_examples, seed=3, counts=FitCounts())
    progress = ProgressReporter(tmp_path)
    untrained = evaluate(model, examples, progress=progress)
    train(model, drawn, rule=rule, seed=3, progress=progress)
    trained = evaluate(model, examples, progress=progress)

    assert trained.loss_sum / trained.n_tokens < 0.8 * untrained.loss_sum / untrained.n_tokens
    for name, bits in base_bits(model).items():
        np.testing.assert_array_equal(bits, on_disk[name], err_msg=name)
    assert any(not np.array_equal(value, state.adapter[name]) for name, value in read_adapter(model.module).items())
