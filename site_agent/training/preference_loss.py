"""Direct preference optimisation (Rafailov et al. 2023, equation 7): the loss of pairs of completions.

For a prompt with a chosen completion c and a rejected one r, with log pi the log-likelihood of a completion's tokens
under the model with its adapter, and log ref that under the same model with its adapter switched off:

    loss = -log sigma(margin),   margin = beta [(log pi_c - log ref_c) - (log pi_r - log ref_r)]

A new adapter that changes nothing has margin 0 and loss log 2 for every pair. The reference is the frozen base, so that
no second model is in memory. Knows neither records nor training; a pair's log-likelihoods come from the completion
loss, in whatever way the model permits it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from site_agent.training.collate import Example
from site_agent.training.completion_loss import CompletionLoss

DEFAULT_BETA = 0.1
"""OpenFedLLM's."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PreferencePair:
    """Two tokenised completions. Invariant: both have the same prompt. Safety: its repr shows no token."""

    chosen: Example
    rejected: Example

    def __post_init__(self) -> None:
        """Check the invariant."""
        if self.chosen.prompt_ids != self.rejected.prompt_ids:
            message = "both completions of a pair follow the same prompt"
            raise ValueError(message)

    def __repr__(self) -> str:
        """The size alone."""
        return f"PreferencePair({self.n_tokens} tokens)"

    @property
    def n_tokens(self) -> int:
        """The length of both sequences together."""
        return self.chosen.n_tokens + self.rejected.n_tokens

    @property
    def n_units(self) -> int:
        """A pair has one loss."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """B pairs.

    Attributes:
        losses: float32 or float64, shape (B,), in nats, with its graph.
        margins: the same, without a graph: beta times the difference of the two log-likelihood ratios.
    """

    losses: torch.Tensor
    margins: torch.Tensor


class PreferenceLoss:
    """Computes the losses of pairs on a model with an adapter."""

    def __init__(
        self,
        completion_loss: CompletionLoss,
        *,
        beta: float,
        without_adapter: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Keep what computes likelihoods.

        Args:
            completion_loss: of the model with its adapter.
            beta: above zero.
            without_adapter: switches the adapter off while its context is open (peft's ``disable_adapter``).
        """
        self._completion_loss = completion_loss
        self._beta = beta
        self._without_adapter = without_adapter

    def __call__(self, pairs: Sequence[PreferencePair]) -> PairLosses:
        """The losses of at least one pair: two passes, one of them without a graph."""
        examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
        with torch.no_grad(), self._without_adapter():
            reference = -self._completion_loss.each(examples)
        ratios = -self._completion_loss.each(examples) - reference
        margins = self._beta * (ratios[0::2] - ratios[1::2])
        return PairLosses(losses=-logsigmoid(margins), margins=margins.detach())
