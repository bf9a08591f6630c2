"""One contract for every kind of adapter of the causal tasks: layout, v0, training, exchange and release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.numpy import load as load_tensors
from transformers import AutoModelForCausalLM

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import PAYLOAD_FILE, DeviceChoice, JobResult
from site_agent.training.adapter_io import (
    adapter_layout,
    adapter_parameters,
    attach_adapter,
    load_adapter,
    read_adapter,
)
from site_agent.training.causal_model import adapt_model, load_base, load_tokenizer
from site_agent.training.closing import close_job
from site_agent.training.collate import Example
from site_agent.training.completion_loss import PackedCompletionLoss, PaddedCompletionLoss
from site_agent.training.device import choose_compute
from site_agent.training.errors import PackingUnavailableError, TargetModulesUnknownError
from site_agent.training.generate import generate, load_release
from site_agent.training.shelf import ModelShelf
from tests.support.training_jobs import bound_spec, make_job, spec_document

pytestmark = pytest.mark.training

IDS = torch.tensor([[1, 20, 30, 40, 50]])
EXAMPLES = (
    Example(prompt_ids=(1, 20, 30, 40, 50), completion_ids=(60, 70, 80)),
    Example(prompt_ids=(1, 20), completion_ids=(61, 71, 81, 91, 2)),
)

LORA = {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}
PROMPT = {"kind": "prompt", "virtual_tokens": 4}
PREFIX = {"kind": "prefix", "virtual_tokens": 4}
IA3 = {"kind": "ia3", "targets": ["k_proj", "v_proj", "down_proj"], "feedforward": ["down_proj"]}
Adapter = Mapping[str, object]
EVERY_KIND = pytest.mark.parametrize("adapter", [LORA, PROMPT, PREFIX, IA3], ids=["lora", "prompt", "prefix", "ia3"])

# Two layers of width 32 with four heads, two of keys and values (width 16), feed-forward 64.
SIZES = {
    "lora": 2 * (64 + 64 + 64 + 32),
    "prompt": 4 * 32,
    "prefix": 4 * 2 * 2 * 16,
    "ia3": 2 * (16 + 16 + 64),
}


@pytest.fixture
def base(tiny_model: Path) -> torch.nn.Module:
    return load_base(tiny_model, choose_compute(DeviceChoice.CPU))


def moved(state: PublicState) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        name: value + generator.normal(0, 0.1, value.shape).astype(np.float32) for name, value in state.adapter.items()
    }


@EVERY_KIND
def test_layout_is_that_of_the_loaded_model_in_the_names_that_peft_saves(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path
) -> None:
    spec, layout, _ = bound_spec(tiny_model, adapter=adapter)
    model = attach_adapter(base, spec)
    assert [tensor.name for tensor in layout.tensors] == sorted(get_peft_model_state_dict(model))
    assert layout.digest() == adapter_layout(model, spec).digest()
    assert layout.n_parameters == SIZES[layout.kind]
    check_layout(layout, spec.adapter)


@EVERY_KIND
def test_only_the_adapter_is_trained_and_in_float32_on_a_bfloat16_base(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path
) -> None:
    spec, layout, _ = bound_spec(tiny_model, adapter=adapter)
    parameters = adapter_parameters(attach_adapter(base.to(torch.bfloat16), spec))
    assert sum(parameter.numel() for parameter in parameters.values()) == layout.n_parameters
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


@EVERY_KIND
def test_adapter_v0_is_the_same_for_a_seed_and_another_for_another(adapter: Adapter, tiny_model: Path) -> None:
    first, again, other = (bound_spec(tiny_model, adapter=adapter, local={"seed": seed})[2] for seed in (7, 7, 8))
    assert first.digest() == again.digest()
    # IA3 begins as ones whatever the seed.
    assert (first.digest() == other.digest()) is (adapter["kind"] == "ia3")


@pytest.mark.parametrize("adapter", [LORA, IA3], ids=["lora", "ia3"])
def test_adapter_v0_changes_nothing(adapter: Adapter, base: torch.nn.Module, tiny_model: Path) -> None:
    spec, layout, state = bound_spec(tiny_model, adapter=adapter)
    with torch.no_grad():
        expected = base(input_ids=IDS).logits.clone()
        model = attach_adapter(base, spec)
        load_adapter(model, state.adapter, layout=layout)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("adapter", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_virtual_tokens_begin_small_and_all_different(adapter: Adapter, tiny_model: Path) -> None:
    (values,) = bound_spec(tiny_model, adapter={**adapter, "virtual_tokens": 64})[2].adapter.values()
    bound = 1 / np.sqrt(values.shape[-1])
    assert np.abs(values).max() <= bound
    assert values.var() == pytest.approx(bound**2 / 3, rel=0.1)
    assert len(np.unique(values, axis=0)) == 64


@EVERY_KIND
def test_loss_is_that_of_each_example_alone_and_the_base_is_back_without_the_adapter(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path
) -> None:
    plain = PaddedCompletionLoss(base, pad_id=0)
    without = [float(plain([example]).loss.detach()) for example in EXAMPLES]
    spec, layout, state = bound_spec(tiny_model, adapter=adapter)
    model = adapt_model(base, load_tokenizer(tiny_model), spec)
    load_adapter(model.module, moved(state), layout=layout)
    # Where the sequence is another one, rows are not packed.
    packs = adapter["kind"] in ("lora", "ia3")
    assert isinstance(model.completion_loss, PackedCompletionLoss if packs else PaddedCompletionLoss)
    with torch.no_grad():
        alone = [float(model.completion_loss([example]).loss) for example in EXAMPLES]
        together = model.completion_loss(EXAMPLES)
        each = model.completion_loss.each(EXAMPLES).tolist()
        with model.module.disable_adapter():
            off = model.completion_loss.each(EXAMPLES).tolist()
    assert together.n_units == 8
    assert float(together.loss) == pytest.approx(sum(alone), rel=1e-5)
    assert each == pytest.approx(alone, rel=1e-5)
    assert off == pytest.approx(without, rel=1e-5)
    assert abs(sum(alone) - sum(without)) > 1e-3


@EVERY_KIND
def test_loss_of_completion_tokens_alone_reaches_the_adapter(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path
) -> None:
    """By numpy from the logits of transformers' own forward pass, whose last positions are those of the real tokens."""
    spec, layout, state = bound_spec(tiny_model, adapter=adapter)
    model = adapt_model(base, load_tokenizer(tiny_model), spec)
    load_adapter(model.module, moved(state), layout=layout)
    expected = 0.0
    for example in EXAMPLES:
        ids = torch.tensor([example.token_ids])
        with torch.no_grad():
            answer = model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        logits = answer.logits[0, -example.n_tokens :].double().numpy()
        for place in range(len(example.prompt_ids), example.n_tokens):
            row = logits[place - 1]
            expected += float(np.log(np.exp(row).sum()) - row[example.token_ids[place]])
    loss = model.completion_loss(EXAMPLES).loss
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapter_parameters(model.module).items()}
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients.values())
    assert sum(one.grad is not None for one in model.module.parameters()) == len(gradients)


@EVERY_KIND
def test_job_trains_it_and_writes_what_the_algorithm_weighs(
    adapter: Adapter, tmp_path: Path, tiny_model: Path, records: Path
) -> None:
    folder = tmp_path / "job"
    spec = make_job(folder, model_folder=tiny_model, records=records, adapter=adapter)
    result = close_job(folder, shelf=ModelShelf())
    assert isinstance(result, JobResult), result
    raw = load_tensors((folder / PAYLOAD_FILE).read_bytes())
    layout = bound_spec(tiny_model, adapter=adapter)[1]
    weighed = ALGORITHMS["fedavg-lora"].weigh(
        raw, n_records=result.records, spec=spec, layout=layout, kind=RoundKind.TRAIN
    )
    assert weighed["adapter_update"].shape == (SIZES[str(adapter["kind"])],)
    assert np.abs(raw["adapter_update"]).max() > 1e-4


@EVERY_KIND
def test_release_is_loaded_by_peft_and_taken_off_again(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path, tmp_path: Path
) -> None:
    spec, layout, state = bound_spec(tiny_model, adapter=adapter)
    values = moved(state)
    release = tmp_path / "release"
    release.mkdir()
    (release / "adapter_config.json").write_text(json.dumps(layout.to_document()["peft_config"]))
    (release / "adapter_model.safetensors").write_bytes(bytes_from_tensors(values, {"format": "pt"}))
    ours = attach_adapter(base, spec)
    load_adapter(ours, values, layout=layout)
    for name, value in read_adapter(ours).items():
        np.testing.assert_array_equal(value, values[name])
    loaded = load_release(load_base(tiny_model, choose_compute(DeviceChoice.CPU)), release)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).logits, ours(**given).logits, rtol=0, atol=0)
    with_it, alone = generate(tiny_model, [release, None], prompt="Say 7.", max_new_tokens=4)
    (first,) = generate(tiny_model, [None], prompt="Say 7.", max_new_tokens=4)
    assert with_it.adapter == str(release)
    assert alone.text == first.text


@pytest.mark.parametrize("adapter", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_packed_rows_cannot_be_demanded_with_virtual_tokens(
    adapter: Adapter, base: torch.nn.Module, tiny_model: Path
) -> None:
    spec, _, _ = bound_spec(tiny_model, adapter=adapter)
    with pytest.raises(PackingUnavailableError):
        adapt_model(base, load_tokenizer(tiny_model), spec, packing=True)


def test_packing_gives_the_loss_that_no_packing_gives(base: torch.nn.Module, tiny_model: Path) -> None:
    spec, _, _ = bound_spec(tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    packed = adapt_model(base, tokenizer, spec, packing=True).completion_loss
    other = load_base(tiny_model, choose_compute(DeviceChoice.CPU))
    plain = adapt_model(other, tokenizer, spec, packing=False).completion_loss
    assert isinstance(packed, PackedCompletionLoss)
    assert isinstance(plain, PaddedCompletionLoss)
    assert float(packed(EXAMPLES).loss.detach()) == pytest.approx(float(plain(EXAMPLES).loss.detach()), rel=1e-6)
    # And that of transformers, an example at a time.
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval()
    expected = 0.0
    for example in EXAMPLES:
        ids = torch.tensor([example.token_ids])
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        with torch.no_grad():
            expected += float(model(input_ids=ids, labels=labels).loss) * example.n_units
    assert float(packed(EXAMPLES).loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_targets_that_match_no_module_are_refused(base: torch.nn.Module) -> None:
    spec = parse_run_spec(spec_document("ab" * 32, adapter={"kind": "ia3", "targets": ["k_proj", "no_proj"]}))
    with pytest.raises(TargetModulesUnknownError) as caught:
        attach_adapter(base, spec)
    assert caught.value.facts == {"target": "no_proj"}


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"adapter": {"kind": "prompt"}}, "adapter.virtual_tokens"),
        ({"adapter": {"kind": "prefix", "virtual_tokens": 0}}, "adapter.virtual_tokens"),
        ({"adapter": {"kind": "prompt", "virtual_tokens": 4, "rank": 8}}, "adapter.rank"),
        ({"adapter": {"kind": "ia3", "targets": ["v_proj"], "feedforward": ["down_proj"]}}, "adapter.feedforward[0]"),
        ({"adapter": PREFIX, "local": {"gradient_checkpointing": True}}, "local.gradient_checkpointing"),
    ],
)
def test_kinds_faults_are_told_by_their_path(sections: dict[str, Mapping[str, object]], path: str) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(spec_document("ab" * 32, **sections))
    assert [fault.path for fault in caught.value.faults] == [path]
