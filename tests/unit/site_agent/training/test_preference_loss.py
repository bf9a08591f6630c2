from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from site_agent.training.adapters.peft_names import peft_warnings_silenced
from site_agent.training.collate import Example
from site_agent.training.completion_loss import CompletionLoss, PackedCompletionLoss, PaddedCompletionLoss
from site_agent.training.preference_loss import PreferenceLoss, PreferencePair

pytestmark = pytest.mark.training

BETA = 0.1
PROMPTS = ((1, 20, 30, 40, 50), (1, 20, 33, 44))
CHOSEN = ((60, 70, 80), (2,))
REJECTED = ((61, 71, 81, 91, 2), (60, 5))
PAIRS = tuple(
    PreferencePair(
        chosen=Example(prompt_ids=prompt, completion_ids=chosen),
        rejected=Example(prompt_ids=prompt, completion_ids=rejected),
    )
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED, strict=True)
)


@pytest.fixture
def base(tiny_model: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), attn_implementation="sdpa")
    return model.double().eval()


@pytest.fixture
def adapted(tiny_model: Path) -> PeftModel:
    """With an adapter that changes the model."""
    base = AutoModelForCausalLM.from_pretrained(str(tiny_model), attn_implementation="sdpa")
    with peft_warnings_silenced():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model


def way(model: PeftModel, number: int) -> CompletionLoss:
    ways: tuple[CompletionLoss, ...] = (
        PaddedCompletionLoss(model, pad_id=0),
        PackedCompletionLoss(model, share_beginning=False),
        PackedCompletionLoss(model, share_beginning=True),
    )
    return ways[number]


def log_likelihood(model: torch.nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """By numpy, a token at a time, each sequence alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].numpy()
    rows = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1]
    return float(sum(row[token] - np.log(np.exp(row).sum()) for row, token in zip(rows, completion, strict=True)))


def expected_margins(base: torch.nn.Module, adapted: torch.nn.Module) -> list[float]:
    margins = []
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        ratio_chosen = log_likelihood(adapted, prompt, chosen) - log_likelihood(base, prompt, chosen)
        ratio_rejected = log_likelihood(adapted, prompt, rejected) - log_likelihood(base, prompt, rejected)
        margins.append(BETA * (ratio_chosen - ratio_rejected))
    return margins


@pytest.mark.parametrize("number", [0, 1, 2], ids=["padded", "packed", "packed-shared"])
def test_loss_equals_the_equation_on_a_batch_computed_by_hand(
    base: torch.nn.Module, adapted: PeftModel, number: int
) -> None:
    loss = PreferenceLoss(way(adapted, number), beta=BETA, without_adapter=adapted.disable_adapter)
    answer = loss(PAIRS)
    margins = expected_margins(base, adapted)
    assert max(abs(margin) for margin in margins) > 0.01
    assert answer.losses.dtype == torch.float64
    assert answer.margins.tolist() == pytest.approx(margins, rel=1e-9)
    assert answer.losses.tolist() == pytest.approx([-np.log(1 / (1 + np.exp(-m))) for m in margins], rel=1e-9)


def test_adapter_that_changes_nothing_has_loss_log_2_and_margin_0(adapted: PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    answer = PreferenceLoss(way(adapted, 2), beta=BETA, without_adapter=adapted.disable_adapter)(PAIRS)
    assert answer.losses.tolist() == pytest.approx([np.log(2)] * 2, rel=1e-12)
    assert answer.margins.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("number", [0, 2], ids=["padded", "packed-shared"])
def test_gradient_is_in_the_adapter_alone_and_is_that_of_the_equation(
    base: torch.nn.Module, adapted: PeftModel, number: int
) -> None:
    loss = PreferenceLoss(way(adapted, number), beta=BETA, without_adapter=adapted.disable_adapter)
    loss(PAIRS).losses.sum().backward()
    with_gradient = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in adapted.named_parameters() if "lora_" in name}
    name, parameter = next((n, p) for n, p in adapted.named_parameters() if "lora_B" in n)
    # Llama's norms compute in float32: a smaller step would measure their rounding.
    step = 3e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[0, 0] += sign * step
        values.append(sum(np.log1p(np.exp(-margin)) for margin in expected_margins(base, adapted)))
        with torch.no_grad():
            parameter[0, 0] -= sign * step
    assert parameter.grad is not None, name
    assert float(parameter.grad[0, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_each_examples_loss_adds_up_to_the_sum(adapted: PeftModel) -> None:
    examples = [example for pair in PAIRS for example in (pair.chosen, pair.rejected)]
    for number in range(3):
        loss = way(adapted, number)
        alone = [float(loss([example]).loss.detach()) for example in examples]
        assert loss.each(examples).tolist() == pytest.approx(alone, rel=1e-12)
        assert float(loss(examples).loss.detach()) == pytest.approx(sum(alone), rel=1e-12)


def test_pair_of_different_prompts_is_refused_and_shows_nothing() -> None:
    with pytest.raises(ValueError, match="same prompt"):
        PreferencePair(
            chosen=Example(prompt_ids=(1,), completion_ids=(2,)), rejected=Example(prompt_ids=(3,), completion_ids=(2,))
        )
    assert repr(PAIRS[0]) == "PreferencePair(18 tokens)"
    assert PAIRS[0].n_tokens == 18
