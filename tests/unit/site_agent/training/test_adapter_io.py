from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.errors import AdapterTensorError
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import (
    adapter_layout,
    adapter_parameters,
    attach_adapter,
    initial_adapter,
    load_adapter,
    read_adapter,
    set_adapter_dropout,
)
from site_agent.training.causal_model import load_base
from site_agent.training.device import choose_compute
from site_agent.training.errors import TargetModulesUnknownError
from site_agent.training.generate import load_release
from tests.support.training_jobs import bound_spec, spec_document

pytestmark = pytest.mark.training

IDS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture
def base(tiny_model: Path) -> torch.nn.Module:
    return load_base(tiny_model, choose_compute(DeviceChoice.CPU))


def trained_values(layout: object, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return layout.unflatten(generator.normal(0, 0.1, layout.n_parameters).astype(np.float32))


def test_names_are_those_that_peft_saves(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, _ = bound_spec(tiny_model)
    model = attach_adapter(base, spec)
    assert [tensor.name for tensor in layout.tensors] == sorted(get_peft_model_state_dict(model))
    assert layout.digest() == adapter_layout(model, spec).digest()
    # 2 layers; A is 2x32 twice; B is 32x2 for q, and 16x2 for v since two key heads serve four.
    assert layout.n_parameters == 2 * (64 + 64 + 64 + 32)


def test_only_the_adapter_is_trained_and_in_float32_on_a_bfloat16_base(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, _ = bound_spec(tiny_model)
    model = attach_adapter(base.to(torch.bfloat16), spec)
    parameters = adapter_parameters(model)
    assert sum(parameter.numel() for parameter in parameters.values()) == layout.n_parameters
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


def test_initial_adapter_is_the_stated_hash(tiny_model: Path) -> None:
    _, layout, state = bound_spec(tiny_model)
    name = next(tensor.name for tensor in layout.tensors if ".lora_A." in tensor.name)
    block = hashlib.sha256(b"wardround/initial-adapter" + struct.pack(">QQ", 7, 1) + name.encode()).digest()
    words = [int.from_bytes(block[4 * k : 4 * k + 4], "big") >> 8 for k in range(8)]
    expected = np.array([(2 * word / 2**24 - 1) / 32**0.5 for word in words], dtype=np.float32)
    np.testing.assert_array_equal(state.adapter[name].reshape(-1)[8:16], expected)


def test_initial_adapter_spreads_a_as_uniform_and_changes_nothing(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, _ = bound_spec(tiny_model, adapter={"rank": 64})
    state = initial_adapter(layout, 12345)
    values = np.concatenate([v.reshape(-1) for n, v in state.adapter.items() if ".lora_A." in n])
    bound = 1 / np.sqrt(32)
    assert np.abs(values).max() <= bound
    # 8192 draws: the mean's standard error is bound / sqrt(3 n); five of them have a chance of one in a million.
    assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
    assert values.var() == pytest.approx(bound**2 / 3, rel=0.05)
    assert not any(value.any() for name, value in state.adapter.items() if ".lora_B." in name)
    with torch.no_grad():
        expected = base(input_ids=IDS).logits.clone()
        model = attach_adapter(base, spec)
        load_adapter(model, state.adapter, layout=layout)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=0)


def test_initial_adapter_differs_by_seed_and_by_tensor(tiny_model: Path) -> None:
    _, layout, _ = bound_spec(tiny_model)
    states = [initial_adapter(layout, seed) for seed in (0, 1)]
    tensors = [v.tobytes() for state in states for n, v in state.adapter.items() if ".lora_A." in n]
    assert len(set(tensors)) == len(tensors) == 8


def test_adapter_loaded_and_read_is_the_same(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, _ = bound_spec(tiny_model)
    model = attach_adapter(base, spec)
    values = trained_values(layout)
    load_adapter(model, values, layout=layout)
    np.testing.assert_array_equal(layout.flatten(read_adapter(model)), layout.flatten(values))
    # A copy: training on does not change what was read.
    read = read_adapter(model)
    with torch.no_grad():
        next(iter(adapter_parameters(model).values())).add_(1.0)
    np.testing.assert_array_equal(layout.flatten(read), layout.flatten(values))


def test_adapter_with_a_tensor_missing_is_refused(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, _ = bound_spec(tiny_model)
    values = trained_values(layout)
    values.popitem()
    with pytest.raises(AdapterTensorError):
        load_adapter(attach_adapter(base, spec), values, layout=layout)


def test_release_in_the_layouts_words_is_loaded_by_peft(
    base: torch.nn.Module, tiny_model: Path, tmp_path: Path
) -> None:
    spec, layout, _ = bound_spec(tiny_model)
    values = trained_values(layout)
    (tmp_path / "adapter_config.json").write_text(json.dumps(layout.to_document()["peft_config"]))
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes_from_tensors(values, {"format": "pt"}))
    loaded = load_release(load_base(tiny_model, choose_compute(DeviceChoice.CPU)), tmp_path)
    assert isinstance(loaded, PeftModel)
    ours = attach_adapter(base, spec)
    load_adapter(ours, values, layout=layout)
    with torch.no_grad():
        expected, found = ours(input_ids=IDS).logits, loaded(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with loaded.disable_adapter(), torch.no_grad():
        assert not torch.equal(loaded(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("targets", [["q_proj", "no_proj"], ["mlp"], ["proj"]])
def test_target_that_is_no_linear_module_is_refused_though_others_are(
    base: torch.nn.Module, targets: list[str]
) -> None:
    spec = parse_run_spec(spec_document("ab" * 32, adapter={"targets": targets}))
    with pytest.raises(TargetModulesUnknownError) as caught:
        attach_adapter(base, spec)
    assert caught.value.facts == {"target": targets[-1]}


def test_dropout_is_switched_inside_the_adapter_alone(base: torch.nn.Module) -> None:
    spec = parse_run_spec(spec_document("ab" * 32, adapter={"dropout": 0.5}))
    model = attach_adapter(base, spec)
    set_adapter_dropout(model, AdapterKind.LORA, is_on=True)
    switched = {name for name, module in model.named_modules() if module.training}
    assert switched
    assert all("lora_dropout" in name for name in switched)
    set_adapter_dropout(model, AdapterKind.LORA, is_on=False)
    assert not any(module.training for module in model.modules())
