"""The loss of a causal language model on completions: summed over their tokens, nothing on prompts.

Knows neither records nor training. The usual way computes logits over the whole vocabulary at every position and pads
every example to the longest; ``PackedCompletionLoss`` does neither and gives the same number. Whether a model permits
it is not assumed: ``choose_completion_loss`` compares both on a few tokens, and keeps the plain way where they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch.nn.functional import cross_entropy

from site_agent.training.collate import IGNORED_LABEL, Example, pack_examples, pad_examples
from site_agent.training.task_half import LossSum

_log = logging.getLogger(__name__)

_RELATIVE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}

_ROW_TOKENS = {False: 512, True: 4096}
"""How many tokens a row may have, without and with a GPU: where the square in attention begins to be felt."""

_BOUNDS_OF_ATTENTION = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
"""What configurations call how far a token sees: Mistral and others, GPT-Neo, RecurrentGemma, Llama 4."""


class CompletionLoss(Protocol):
    """Computes the summed loss of some examples in one forward pass."""

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        """The summed loss of at least one example."""
        ...

    def each(self, examples: Sequence[Example]) -> torch.Tensor:
        """Each example's own summed loss, in nats: float32 or float64, shape (B,), with its graph."""
        ...


class PaddedCompletionLoss:
    """The plain way: every logit of every position. The yardstick, and what any causal model permits."""

    def __init__(self, model: torch.nn.Module, *, pad_id: int) -> None:
        """Keep the model, with or without an adapter on it."""
        self._model = model
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        """See ``CompletionLoss``."""
        logits, labels = self._logits_and_labels(examples)
        loss = cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return LossSum(loss=loss, n_units=int((labels != IGNORED_LABEL).sum()))

    def each(self, examples: Sequence[Example]) -> torch.Tensor:
        """See ``CompletionLoss``."""
        logits, labels = self._logits_and_labels(examples)
        losses = cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
        return losses.view(len(examples), -1).sum(dim=1)

    def _logits_and_labels(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of B rows of at most L tokens: logits, shape (B (L - 1), V), and what they predict, shape (B (L - 1),)."""
        batch = pad_examples(examples, pad_id=self._pad_id)
        device = next(self._model.parameters()).device
        answer = self._model(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
        )
        labels = batch.labels[:, 1:].reshape(-1).to(device)
        # Virtual tokens stand before the real ones, and a model that has them answers for them, too.
        of_tokens = answer.logits[:, -batch.labels.shape[1] :]
        return at_least_float32(of_tokens[:, :-1].reshape(len(labels), -1)), labels


class PackedCompletionLoss:
    """One row without padding, the shared beginning once, the vocabulary only where a completion token is predicted."""

    def __init__(self, model: torch.nn.Module, *, share_beginning: bool) -> None:
        """Keep the decoder and the head of ``model``, a causal model with or without an adapter on it."""
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = causal.get_decoder()
        self._head = causal.get_output_embeddings()
        self._share_beginning = share_beginning

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        """See ``CompletionLoss``. Attention grows with a row's square, so that long batches take several rows."""
        row_tokens = _ROW_TOKENS[self._head.weight.device.type == "cuda"]
        losses = [self._loss_of_row(group, reduction="sum") for group in groups_of_tokens(examples, row_tokens)]
        return LossSum(loss=sum(losses[1:], losses[0]), n_units=sum(len(one.completion_ids) for one in examples))

    def each(self, examples: Sequence[Example]) -> torch.Tensor:
        """See ``CompletionLoss``."""
        row_tokens = _ROW_TOKENS[self._head.weight.device.type == "cuda"]
        rows = [self._loss_of_row(group, reduction="none") for group in groups_of_tokens(examples, row_tokens)]
        lengths = [len(example.completion_ids) for example in examples]
        return torch.stack([losses.sum() for losses in torch.cat(rows).split(lengths)])

    def _loss_of_row(self, examples: Sequence[Example], *, reduction: Literal["sum", "none"]) -> torch.Tensor:
        row = pack_examples(examples, share_beginning=self._share_beginning)
        weight = self._head.weight
        hidden = torch.zeros(row.visible.shape, dtype=weight.dtype)
        mask = hidden.masked_fill(~row.visible, torch.finfo(weight.dtype).min)[None, None]
        answer = self._decoder(
            input_ids=row.input_ids.to(weight.device),
            position_ids=row.position_ids.to(weight.device),
            attention_mask=mask.to(weight.device),
            use_cache=False,
        )
        states = answer.last_hidden_state[0].index_select(0, row.predicting.to(weight.device))
        logits = at_least_float32(self._head(states))
        return cross_entropy(logits, row.labels.to(weight.device), reduction=reduction)


def groups_of_tokens(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """Consecutive groups of at most ``row_tokens`` tokens; an example that is longer is a group of its own."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        if not groups or example.n_tokens > room:
            groups.append([])
            room = row_tokens
        groups[-1].append(example)
        room -= example.n_tokens
    return groups


def choose_completion_loss(model: torch.nn.Module, *, pad_id: int, has_dropout: bool) -> CompletionLoss:
    """The packed way where this model permits it, else the plain way.

    A model whose head does more than multiply, or whose attention takes no mask of its own, gives another number on
    the probe and is trained in the plain way. So is one whose attention sees only a part of a row, for the probe is
    shorter than such a part, and one whose adapter puts virtual tokens before each example.
    """
    plain = PaddedCompletionLoss(model, pad_id=pad_id)
    if sees_only_a_part(model) or has_virtual_tokens(model):
        return plain
    was_training = model.training
    model.eval()
    try:
        packed = PackedCompletionLoss(model, share_beginning=True)
        with torch.inference_mode():
            expected, found = plain(_PROBE).loss, packed(_PROBE).loss
        tolerance = _RELATIVE_TOLERANCE.get(packed_dtype(model), 0.0)
        is_equal = bool((found - expected).abs() <= tolerance * expected.abs())
    except (AttributeError, TypeError, ValueError, IndexError):
        is_equal = False
    finally:
        model.train(was_training)
    if not is_equal:
        _log.warning("this model does not permit packed rows; training in the plain way")
        return plain
    return PackedCompletionLoss(model, share_beginning=not has_dropout)


def sees_only_a_part(model: torch.nn.Module) -> bool:
    """Whether some layer's attention is bounded by distance in the row: a window that slides, or chunks."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    is_bounded = any(getattr(config, name, None) is not None for name in _BOUNDS_OF_ATTENTION)
    return is_bounded or any(kind != "full_attention" for kind in kinds)


def has_virtual_tokens(model: torch.nn.Module) -> bool:
    """Whether the model's adapter is a soft prompt or a prefix (peft's prompt learning)."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def packed_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of a model's input embedding, in which it computes."""
    return model.get_input_embeddings().weight.dtype


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or better: a sum of losses in bfloat16 would lose most of its digits."""
    return logits if logits.dtype == torch.float64 else logits.float()


_PROBE = (
    Example(prompt_ids=(1, 2, 3, 4, 5), completion_ids=(6, 7, 8)),
    Example(prompt_ids=(1, 2, 3, 9), completion_ids=(4, 3, 2, 7, 5)),
)
"""Token numbers that any vocabulary has, with a shared beginning and different lengths."""
