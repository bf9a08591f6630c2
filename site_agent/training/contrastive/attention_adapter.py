"""FedCLIP's attention adapter: it weighs the components of an image's embedding. Knows neither images nor rounds.

Source: Lu, Hu, Wang, Xie, *FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning*, IEEE Data
Engineering Bulletin 2023 (arXiv 2302.13485), section 3.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, softmax


class AttentionAdapter(torch.nn.Module):
    """z' = a(z) * z, elementwise, with a(z) = softmax(W2 tanh(W1 z + b1) + b2). 2 (d^2 + d) parameters.

    Where W2 and b2 are zero, a(z) is 1/d in each component: the direction of z is unchanged, and the model is the one
    without an adapter.
    """

    def __init__(self, dimension: int) -> None:
        """Parameters of zero, float32; their values are set from outside."""
        super().__init__()
        self.dimension = dimension
        self.W1 = torch.nn.Parameter(torch.zeros(dimension, dimension))
        self.b1 = torch.nn.Parameter(torch.zeros(dimension))
        self.W2 = torch.nn.Parameter(torch.zeros(dimension, dimension))
        self.b2 = torch.nn.Parameter(torch.zeros(dimension))

    def forward(self, image_embeddings: torch.Tensor) -> torch.Tensor:
        """The adapted embeddings.

        Args:
            image_embeddings: shape (batch, d), any norm.

        Returns:
            shape (batch, d); not normalised.
        """
        hidden = torch.tanh(linear(image_embeddings, self.W1, self.b1))
        attention = softmax(linear(hidden, self.W2, self.b2), dim=-1)
        return attention * image_embeddings


def n_attention_parameters(dimension: int) -> int:
    """How many numbers the adapter has: 2 (d^2 + d)."""
    return 2 * (dimension * dimension + dimension)
