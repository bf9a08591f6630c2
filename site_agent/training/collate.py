"""Token sequences as tensors: several examples in one row without padding, or one example a row with padding.

Knows neither records nor models. Two honest savings are made here, and both give exactly the plain loss:

* the beginning that all prompts of a batch share (a system message, the head of a question) is computed once. Token j
  of an example attends to the tokens of the shared beginning and to its own, at the positions that it would have alone;
* only positions that predict a completion token are listed, so that the head over the vocabulary runs on no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORED_LABEL = -100
"""The label of a position that carries no loss, as torch's cross entropy has it."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Example:
    """One tokenised record. Invariant: both parts have at least one token. Safety: its repr shows no token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the invariant: an example without a completion would silently train on nothing."""
        if not self.prompt_ids or not self.completion_ids:
            message = "an example has prompt and completion tokens"
            raise ValueError(message)

    def __repr__(self) -> str:
        """The size alone."""
        return f"Example({len(self.prompt_ids)}+{len(self.completion_ids)} tokens)"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt, then completion."""
        return self.prompt_ids + self.completion_ids

    @property
    def n_tokens(self) -> int:
        """The length of the whole sequence."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def n_units(self) -> int:
        """Completion tokens: what carries loss."""
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """Several examples in one row of L tokens, with K completion tokens among them.

    Attributes:
        input_ids: int64, shape (1, L).
        position_ids: int64, shape (1, L): each token's position within its own example.
        visible: bool, shape (L, L): row token may attend to column token.
        predicting: int64, shape (K,): places in the row whose hidden state predicts a completion token.
        labels: int64, shape (K,): those completion tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    predicting: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """B examples of at most L tokens, padded on the right.

    Attributes:
        input_ids, attention_mask: int64, shape (B, L).
        labels: int64, shape (B, L); ``IGNORED_LABEL`` on prompt tokens and padding; not shifted.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def shared_prompt_length(examples: Sequence[Example]) -> int:
    """How many first tokens all prompts have in common; never a whole prompt, whose end predicts its own completion."""
    first = examples[0].prompt_ids
    longest = min(len(example.prompt_ids) for example in examples) - 1
    length = 0
    while length < longest and all(example.prompt_ids[length] == first[length] for example in examples):
        length += 1
    return length


def pack_examples(examples: Sequence[Example], *, share_beginning: bool = True) -> PackedRow:
    """Put examples behind each other into one row.

    Args:
        examples: at least one.
        share_beginning: compute what all prompts begin with once. With dropout that would give all examples the same
            noise there, so a caller that uses dropout says no.
    """
    shared = shared_prompt_length(examples) if share_beginning else 0
    input_ids = list(examples[0].prompt_ids[:shared])
    position_ids = list(range(shared))
    owners = [0] * shared
    predicting: list[int] = []
    labels: list[int] = []
    for owner, example in enumerate(examples, start=1):
        # Where the example's position 0 would lie in the row, were its own copy of the shared beginning there.
        start = len(input_ids) - shared
        predicting.extend(range(start + len(example.prompt_ids) - 1, start + example.n_tokens - 1))
        labels.extend(example.completion_ids)
        input_ids.extend(example.token_ids[shared:])
        position_ids.extend(range(shared, example.n_tokens))
        owners.extend([owner] * (example.n_tokens - shared))
    owner_of = torch.tensor(owners)
    is_own_or_shared = (owner_of[:, None] == owner_of[None, :]) | (owner_of[None, :] == 0)
    is_before = torch.ones(len(owners), len(owners), dtype=torch.bool).tril()
    return PackedRow(
        input_ids=torch.tensor([input_ids]),
        position_ids=torch.tensor([position_ids]),
        visible=is_own_or_shared & is_before,
        predicting=torch.tensor(predicting),
        labels=torch.tensor(labels),
    )


def pad_examples(examples: Sequence[Example], *, pad_id: int) -> PaddedBatch:
    """Put each example into a row of its own."""
    shape = (len(examples), max(example.n_tokens for example in examples))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED_LABEL)
    for row, example in enumerate(examples):
        input_ids[row, : example.n_tokens] = torch.tensor(example.token_ids)
        attention_mask[row, : example.n_tokens] = 1
        labels[row, len(example.prompt_ids) : example.n_tokens] = torch.tensor(example.completion_ids)
    return PaddedBatch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
