"""A frozen model with two towers: images and texts become features, and two projections bring them into one space.

    pixels -> image tower -> features of an image (D_v) -> image projection -> d numbers
    words  -> text tower  -> features of a text   (D_t) -> text projection  -> d numbers

The towers are what costs; nothing ever trains them, so a site computes a record's features once. Knows no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch


class Words(Protocol):
    """Turns texts into what a text tower reads."""

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers and attention mask, int64, shape (batch, longest)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """What an image tower wants: a square of ``size``, channels minus ``mean`` over ``std`` (of values in [0, 1])."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TwoTowers(torch.nn.Module):
    """The whole base. Invariant: no parameter requires a gradient, and nothing in it drops out.

    Attributes:
        pixels: how images are prepared for it.
        log_scale: the logarithm of the factor that its own cosines are multiplied by.
    """

    def __init__(
        self,
        *,
        image_tower: torch.nn.Module,
        text_tower: torch.nn.Module,
        image_projection: torch.nn.Linear,
        text_projection: torch.nn.Linear,
        words: Words,
        pixels: Pixels,
        log_scale: float,
    ) -> None:
        """Put together what was loaded, and freeze it."""
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = image_projection
        self.text_projection = text_projection
        self.pixels = pixels
        self.log_scale = log_scale
        self._words = words
        self.requires_grad_(requires_grad=False).eval()

    @property
    def dimension(self) -> int:
        """d, of the space that both share."""
        return self.image_projection.out_features

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, D_v), from float32, shape (batch, 3, size, size)."""
        with torch.inference_mode():
            weight = self.image_projection.weight
            return cast("torch.Tensor", self.image_tower(pixels.to(weight.device, weight.dtype))).float().cpu()

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """float32, shape (batch, D_t), of at least one text."""
        input_ids, attention_mask = self._words(texts)
        device = self.text_projection.weight.device
        with torch.inference_mode():
            features = self.text_tower(input_ids.to(device), attention_mask.to(device))
            return cast("torch.Tensor", features).float().cpu()
