"""An image's pixels as an image tower wants them: the shorter side to size, the middle cut out, normalised. Pure."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from site_agent.training.clip.towers import Pixels


def prepare_pixels(image: NDArray[np.uint8], wanted: Pixels) -> torch.Tensor:
    """Prepare one image as CLIP does: bicubic, with antialiasing.

    Args:
        image: uint8, shape (height, width, 3), RGB; both sides at least 1.
        wanted: what the tower wants.

    Returns:
        float32, shape (3, size, size).
    """
    height, width = image.shape[:2]
    factor = wanted.size / min(height, width)
    resized = (max(wanted.size, round(width * factor)), max(wanted.size, round(height * factor)))
    left, above = (resized[0] - wanted.size) // 2, (resized[1] - wanted.size) // 2
    # Only the middle square is computed: a strip that is a thousand times as long as wide stays small.
    box = (
        left * width / resized[0],
        above * height / resized[1],
        (left + wanted.size) * width / resized[0],
        (above + wanted.size) * height / resized[1],
    )
    square = Image.fromarray(image).resize((wanted.size, wanted.size), Image.Resampling.BICUBIC, box=box)
    values = torch.from_numpy(np.asarray(square, dtype=np.float32) / np.float32(255)).permute(2, 0, 1)
    mean, std = torch.tensor(wanted.mean)[:, None, None], torch.tensor(wanted.std)[:, None, None]
    return ((values - mean) / std).contiguous()
