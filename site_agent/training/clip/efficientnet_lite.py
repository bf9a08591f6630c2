"""EfficientNet-Lite0 as a frozen feature extractor: image to 1280 numbers. Knows no weights' origin.

Source: Tan and Le, *EfficientNet* (arXiv 1905.11946), table 1, in the form published as EfficientNet-Lite: no squeeze
and excitation, ReLU6 instead of swish, stem and head of fixed width. Batch normalisation is folded into the
convolutions by whoever writes the weights, so that a layer here is a convolution with a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch.nn.functional import pad, relu6

FEATURES = 1280
STEM_CHANNELS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A row of the paper's table: blocks that widen by ``expansion``, convolve by depth, and narrow to ``channels``."""

    expansion: int
    channels: int
    repeats: int
    stride: int
    kernel: int


LITE0 = (
    Stage(expansion=1, channels=16, repeats=1, stride=1, kernel=3),
    Stage(expansion=6, channels=24, repeats=2, stride=2, kernel=3),
    Stage(expansion=6, channels=40, repeats=2, stride=2, kernel=5),
    Stage(expansion=6, channels=80, repeats=3, stride=2, kernel=3),
    Stage(expansion=6, channels=112, repeats=3, stride=1, kernel=5),
    Stage(expansion=6, channels=192, repeats=4, stride=2, kernel=5),
    Stage(expansion=6, channels=320, repeats=1, stride=1, kernel=3),
)


class SamePaddedConvolution(torch.nn.Module):
    """A convolution whose output has ceil(input / stride) rows; what must be padded unevenly is padded more behind."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, is_depthwise: bool = False) -> None:
        """A convolution with a bias."""
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        groups = inputs if is_depthwise else 1
        self.convolution = torch.nn.Conv2d(inputs, outputs, kernel, stride=stride, groups=groups)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        above, below = self._padding(images.shape[-2])
        left, right = self._padding(images.shape[-1])
        return cast("torch.Tensor", self.convolution(pad(images, (left, right, above, below))))

    def _padding(self, size: int) -> tuple[int, int]:
        n_outputs = -(-size // self.stride)
        needed = max((n_outputs - 1) * self.stride + self.kernel - size, 0)
        return needed // 2, needed - needed // 2


class Block(torch.nn.Module):
    """An inverted bottleneck: widen, convolve each channel by itself, narrow; added to its input where shapes agree."""

    def __init__(self, inputs: int, stage: Stage, *, stride: int) -> None:
        """The first block of a stage has the stage's stride, the others have 1."""
        super().__init__()
        wide = inputs * stage.expansion
        self.widen = SamePaddedConvolution(inputs, wide, kernel=1) if stage.expansion > 1 else None
        self.depthwise = SamePaddedConvolution(wide, wide, kernel=stage.kernel, stride=stride, is_depthwise=True)
        self.narrow = SamePaddedConvolution(wide, stage.channels, kernel=1)
        self.is_residual = stride == 1 and inputs == stage.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (batch, channels, h', w')."""
        wide = images if self.widen is None else relu6(self.widen(images))
        narrow = cast("torch.Tensor", self.narrow(relu6(self.depthwise(wide))))
        return images + narrow if self.is_residual else narrow


class EfficientNetLite0(torch.nn.Module):
    """Images to features; no classifier."""

    def __init__(self) -> None:
        """Untrained."""
        super().__init__()
        self.stem = SamePaddedConvolution(3, STEM_CHANNELS, kernel=3, stride=2)
        blocks: list[Block] = []
        channels = STEM_CHANNELS
        for stage in LITE0:
            for number in range(stage.repeats):
                blocks.append(Block(channels, stage, stride=stage.stride if number == 0 else 1))
                channels = stage.channels
        self.blocks = torch.nn.ModuleList(blocks)
        self.head = SamePaddedConvolution(channels, FEATURES, kernel=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The mean over all places of the last layer.

        Args:
            pixels: shape (batch, 3, h, w), normalised as the weights expect.

        Returns:
            shape (batch, 1280), each in [0, 6].
        """
        images = relu6(self.stem(pixels))
        for block in self.blocks:
            images = block(images)
        return cast("torch.Tensor", relu6(self.head(images)).mean(dim=(2, 3)))
