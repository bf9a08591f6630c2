"""A base with two towers and an adapter behind them: the module that the tasks on images train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from site_agent.training.clip.towers import TwoTowers
from site_agent.training.contrastive.attention_adapter import AttentionAdapter
from site_agent.training.contrastive.joint_projection import JointProjection

EmbeddingAdapter = AttentionAdapter | JointProjection


class AdaptedTowers(torch.nn.Module):
    """Invariant: of its parameters only the adapter's require a gradient."""

    def __init__(self, towers: TwoTowers, adapter: EmbeddingAdapter) -> None:
        """Put the adapter behind the towers; it lies where their projections lie, in float32."""
        super().__init__()
        self.towers = towers
        self.adapter = adapter.to(towers.image_projection.weight.device)
        self.eval()

    def images(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Adapted embeddings of images, shape (batch, d)."""
        adapted: torch.Tensor = self.adapter(embeddings)
        return adapted

    def texts(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Adapted embeddings of texts, shape (batch, d): FedCLIP's adapter leaves them as they are."""
        if isinstance(self.adapter, AttentionAdapter):
            return embeddings
        adapted: torch.Tensor = self.adapter(embeddings)
        return adapted

    def scale(self) -> torch.Tensor | float:
        """The factor of the logits."""
        log_scale = self.towers.log_scale
        return math.exp(log_scale) if isinstance(self.adapter, AttentionAdapter) else self.adapter.scale(log_scale)

    def image_embeddings(self, features: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, d), from an image tower's features, shape (batch, D_v); without a graph."""
        with torch.no_grad():
            weight = self.towers.image_projection.weight
            projected: torch.Tensor = self.towers.image_projection(features.to(weight.device, weight.dtype))
            return projected.float()

    def text_embeddings(self, features: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, d), from a text tower's features, shape (batch, D_t); without a graph."""
        with torch.no_grad():
            weight = self.towers.text_projection.weight
            projected: torch.Tensor = self.towers.text_projection(features.to(weight.device, weight.dtype))
            return projected.float()

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of a few texts as they are, before the adapter."""
        return self.text_embeddings(self.towers.text_features(texts))
