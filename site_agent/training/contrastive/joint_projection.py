"""One linear map for embeddings of images and of texts, and the scale of their logits. Knows neither images nor rounds.

MedCLIP trains a projection behind each of its encoders. In a federation where some sites have no images, the sum of
image projections would be a sum over the other sites alone, so here one map stands behind both (decision 44).
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

LARGEST_LOG_SCALE = 4.6052
"""MedCLIP and CLIP let the factor grow to 100 and no further, nor below 1."""


class JointProjection(torch.nn.Module):
    """z' = z + U z, and log s' = log s + delta, cut to [0, 4.6052]. d^2 + 1 parameters; zeros change nothing."""

    def __init__(self, dimension: int) -> None:
        """Parameters of zero, float32; their values are set from outside."""
        super().__init__()
        self.projection = torch.nn.Parameter(torch.zeros(dimension, dimension))
        self.log_scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Shape (batch, d) of either kind; not normalised."""
        return embeddings + linear(embeddings, self.projection)

    def scale(self, log_scale: float) -> torch.Tensor:
        """The factor of the logits, from the logarithm that the base comes with; shape (1,)."""
        return (self.log_scale + log_scale).clamp(0, LARGEST_LOG_SCALE).exp()
