from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from site_agent.training.collate import Example
from site_agent.training.completion_loss import (
    CompletionLoss,
    PackedCompletionLoss,
    PaddedCompletionLoss,
    choose_completion_loss,
    groups_of_tokens,
)

pytestmark = pytest.mark.training

EXAMPLES = (
    Example(prompt_ids=(1, 20, 30, 40, 50), completion_ids=(60, 70, 80)),
    Example(prompt_ids=(1, 20, 30, 41), completion_ids=(61, 71, 81, 91, 2)),
    Example(prompt_ids=(1, 20, 33, 44, 55, 66), completion_ids=(2,)),
)
N_TOKENS = 9


@pytest.fixture
def model(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(str(tiny_model), attn_implementation="sdpa").eval()


def ways(model: torch.nn.Module) -> list[CompletionLoss]:
    return [
        PaddedCompletionLoss(model, pad_id=0),
        PackedCompletionLoss(model, share_beginning=False),
        PackedCompletionLoss(model, share_beginning=True),
    ]


def loss_by_transformers(model: torch.nn.Module) -> torch.Tensor:
    """transformers' own mean loss of each example alone, times its completion tokens."""
    total = torch.zeros((), dtype=model.dtype)
    for example in EXAMPLES:
        ids = torch.tensor([example.token_ids])
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        total = total + model(input_ids=ids, labels=labels).loss * len(example.completion_ids)
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("way", [0, 1, 2])
def test_loss_equals_that_of_transformers(
    model: torch.nn.Module, way: int, dtype: torch.dtype, tolerance: float
) -> None:
    # transformers upcasts logits to float32 for its loss, which bounds the agreement in float64 too.
    model = model.to(dtype)
    answer = ways(model)[way](EXAMPLES)
    assert answer.n_units == N_TOKENS
    assert answer.loss.item() == pytest.approx(loss_by_transformers(model).item(), rel=tolerance)


@pytest.mark.parametrize("way", [0, 1, 2])
def test_loss_is_the_log_likelihood_of_completion_tokens_alone(model: torch.nn.Module, way: int) -> None:
    model = model.double()
    expected = 0.0
    for example in EXAMPLES:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.token_ids])).logits[0].numpy()
        for place in range(len(example.prompt_ids), example.n_tokens):
            row = logits[place - 1]
            expected += float(np.log(np.exp(row).sum()) - row[example.token_ids[place]])
    assert ways(model)[way](EXAMPLES).loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("way", [1, 2])
def test_gradient_of_a_packed_row_equals_that_of_single_examples(model: torch.nn.Module, way: int) -> None:
    model = model.double()
    expected = gradient(model, sum(PaddedCompletionLoss(model, pad_id=0)([one]).loss for one in EXAMPLES))
    found = gradient(model, ways(model)[way](EXAMPLES).loss)
    # transformers' normalisation computes in float32 whatever the model's dtype, so the order of sums is seen there.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-6)


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_loss_of_bfloat16_is_summed_in_float32(model: torch.nn.Module) -> None:
    model = model.to(torch.bfloat16)
    assert {way(EXAMPLES).loss.dtype for way in ways(model)} == {torch.float32}


def test_long_batches_take_several_rows_and_give_the_same_sum(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model.double()
    whole = PackedCompletionLoss(model, share_beginning=True)(EXAMPLES)
    monkeypatch.setattr("site_agent.training.completion_loss._ROW_TOKENS", {False: 16, True: 16})
    split = PackedCompletionLoss(model, share_beginning=True)(EXAMPLES)
    assert split.n_units == whole.n_units
    assert split.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)


def test_groups_hold_at_most_their_tokens_but_for_one_long_example() -> None:
    assert [len(group) for group in groups_of_tokens(EXAMPLES, 16)] == [1, 2]
    assert [len(group) for group in groups_of_tokens(EXAMPLES, 5)] == [1, 1, 1]
    assert [len(group) for group in groups_of_tokens(EXAMPLES, 100)] == [3]


def test_choice_is_the_packed_way_for_a_model_that_permits_it(model: torch.nn.Module) -> None:
    assert isinstance(choose_completion_loss(model, pad_id=0, has_dropout=False), PackedCompletionLoss)


def test_choice_shares_no_beginning_where_an_adapter_has_dropout(model: torch.nn.Module) -> None:
    chosen = choose_completion_loss(model, pad_id=0, has_dropout=True)
    assert isinstance(chosen, PackedCompletionLoss)
    assert not chosen._share_beginning


def test_choice_is_the_plain_way_where_the_head_does_more_than_multiply(
    model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    forward = model.forward

    def capped(**inputs: object) -> object:
        answer = forward(**inputs)
        answer.logits = 5 * torch.tanh(answer.logits / 5)
        return answer

    model.forward = capped
    assert isinstance(choose_completion_loss(model, pad_id=0, has_dropout=False), PaddedCompletionLoss)
    assert "plain way" in caplog.text


def test_choice_is_the_plain_way_where_attention_slides_a_window(model: torch.nn.Module) -> None:
    model.config.sliding_window = 128
    assert isinstance(choose_completion_loss(model, pad_id=0, has_dropout=False), PaddedCompletionLoss)


def test_choice_gives_the_plain_loss_where_attention_is_local_beyond_the_probe() -> None:
    """GPT-Neo's window is counted in the row: far behind it, an example would not see the beginning that all share."""
    torch.manual_seed(0)
    local = {"attention_types": [[["local"], 2]], "window_size": 32, "max_position_embeddings": 128}
    config = GPTNeoConfig(vocab_size=100, hidden_size=32, num_layers=2, num_heads=2, initializer_range=0.5, **local)
    model = GPTNeoForCausalLM(config).eval()
    shared = tuple(range(1, 25))
    examples = [Example(prompt_ids=(*shared, k), completion_ids=(5, 6, 7, k)) for k in range(30, 40)]
    with torch.no_grad():
        chosen = choose_completion_loss(model, pad_id=0, has_dropout=False)(examples).loss
        each = [
            model(input_ids=torch.tensor([one.token_ids]), labels=torch.tensor([[-100] * 25 + [*one.completion_ids]]))
            for one in examples
        ]
    assert float(chosen) == pytest.approx(sum(4 * float(answer.loss) for answer in each), rel=1e-5)
