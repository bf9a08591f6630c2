"""Which class an image shows, told by prompts alone; and which texts are nearest to it. Pure.

Source: CLIP (arXiv 2103.00020), section 3.1.4, for prompts that stand for a class; MedCLIP (arXiv 2210.10163), section
4.3, for the mean over a class's prompts, and section 4.5 for precision at k.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch.nn.functional import normalize


class Ensemble(StrEnum):
    """How the prompts of a class are put together: the mean of their logits, or the largest."""

    MEAN = "mean"
    MAX = "max"


def prompt_logits(
    embeddings: torch.Tensor, prompt_embeddings: torch.Tensor, *, scale: torch.Tensor | float
) -> torch.Tensor:
    """The scale s times the cosine of each embedding with each prompt: shape (n, p) from (n, d) and (p, d)."""
    return scale * normalize(embeddings, dim=-1) @ normalize(prompt_embeddings, dim=-1).T


def class_logits(
    logits_of_prompts: torch.Tensor, prompts_of_class: Sequence[Sequence[int]], *, ensemble: Ensemble
) -> torch.Tensor:
    """A logit a class.

    Args:
        logits_of_prompts: shape (n, p).
        prompts_of_class: for each class, the places of its prompts among the p; at least one.
        ensemble: how they are put together.

    Returns:
        shape (n, c).
    """
    columns = []
    for places in prompts_of_class:
        of_class = logits_of_prompts[:, list(places)]
        columns.append(of_class.mean(dim=1) if ensemble is Ensemble.MEAN else of_class.amax(dim=1))
    return torch.stack(columns, dim=1)


def retrieval_hits(logits: torch.Tensor, is_relevant: torch.Tensor, *, k: int) -> int:
    """How many of each row's k best columns are relevant, summed over the rows: P@k is this over rows times k.

    Among equal logits the lower column comes first, so that the count is the same everywhere.

    Args:
        logits: shape (n, m), m >= k.
        is_relevant: bool, shape (n, m).
        k: at least 1.

    Raises:
        ValueError: there are fewer than k columns.
    """
    if not 1 <= k <= logits.shape[1]:
        message = "precision at k needs at least k candidates"
        raise ValueError(message)
    best = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :k]
    return int(is_relevant.gather(1, best).sum())
