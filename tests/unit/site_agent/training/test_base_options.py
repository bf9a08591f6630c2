from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapters.peft_names import peft_warnings_silenced
from site_agent.training.base_options import quantization_config, recompute_activations
from site_agent.training.causal_model import load_base
from site_agent.training.collate import Example
from site_agent.training.completion_loss import PackedCompletionLoss
from site_agent.training.device import Compute, choose_compute
from site_agent.training.errors import BaseModelInvalidError, QuantizationUnavailableError

pytestmark = pytest.mark.training

EXAMPLES = tuple(
    Example(prompt_ids=tuple(range(1, 40)), completion_ids=tuple(range(40, 80 + 10 * k))) for k in range(4)
)


def adapted(tiny_model: Path) -> PeftModel:
    base = load_base(tiny_model, choose_compute(DeviceChoice.CPU))
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with peft_warnings_silenced():
        return get_peft_model(base, config).eval()


def gradients_and_kept_bytes(model: PeftModel) -> tuple[dict[str, torch.Tensor], int]:
    """The adapter's gradients, and how many bytes the forward pass kept for the backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = PackedCompletionLoss(model, share_beginning=False)(EXAMPLES).loss
        kept_by_forward = kept
    loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return found, kept_by_forward


def test_recomputed_activations_change_no_gradient_and_keep_far_less(tiny_model: Path) -> None:
    expected, kept = gradients_and_kept_bytes(adapted(tiny_model))
    model = adapted(tiny_model)
    recompute_activations(model.get_base_model())
    found, kept_now = gradients_and_kept_bytes(model)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert kept_now < kept / 2


def test_recomputing_switches_on_no_dropout(tiny_model: Path) -> None:
    model = adapted(tiny_model)
    recompute_activations(model.get_base_model())
    training = {type(module).__name__ for module in model.modules() if module.training}
    assert training == {"LlamaDecoderLayer"}


def test_architecture_without_layers_to_recompute_is_told(tiny_model: Path) -> None:
    model = load_base(tiny_model, choose_compute(DeviceChoice.CPU))
    model.supports_gradient_checkpointing = False
    with pytest.raises(BaseModelInvalidError):
        recompute_activations(model)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_base_without_a_gpu_is_refused_with_advice(bits: int) -> None:
    with pytest.raises(QuantizationUnavailableError) as caught:
        quantization_config(bits, choose_compute(DeviceChoice.CPU))  # type: ignore[arg-type]
    assert caught.value.facts == {"bits": bits}
    assert "GPU" in caught.value.advice


def test_quantized_base_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Compute(device=torch.device("cuda"), dtype=torch.bfloat16, device_name="cuda", reason="as on a GPU")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(QuantizationUnavailableError, match="bitsandbytes"):
        quantization_config(4, compute)
