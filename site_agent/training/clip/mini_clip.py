"""The packaged base for machines without a CLIP: EfficientNet-Lite0 and MiniLM, frozen, brought into one space.

A folder in the form of Hugging Face (config.json, model.safetensors, a tokenizer), made from two packages by
``deploy/scripts/build_mini_clip.py``. What the projections learned from, and how well, is in docs/tasks/mini-clip.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from site_agent.training.clip.efficientnet_lite import FEATURES, EfficientNetLite0
from site_agent.training.clip.towers import Pixels, TwoTowers
from site_agent.training.errors import BaseModelInvalidError

MODEL_TYPE = "wardround-mini-clip"
DIMENSION = 384
IMAGE_SIZE = 224
MEAN = 127 / 255
STD = 128 / 255
"""EfficientNet-Lite's weights expect (value - 127) / 128 of values from 0 to 255."""

MAX_TOKENS = 128

IMAGE_PREFIX = "image_tower."
TEXT_PREFIX = "text_tower.model."


class SentenceTower(torch.nn.Module):
    """MiniLM as sentence-transformers uses it: the mean over a text's tokens, over its norm."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep the encoder."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Shape (batch, D_t), each of norm 1."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counted = attention_mask[:, :, None].to(hidden.dtype)
        return normalize((hidden * counted).sum(dim=1) / counted.sum(dim=1), dim=-1)


class WordPieces:
    """MiniLM's own tokenizer, cut at ``MAX_TOKENS``."""

    def __init__(self, tokenizer_file: Path) -> None:
        """Read it.

        Raises:
            BaseModelInvalidError: the file is no tokenizer.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:
            # The library raises bare exceptions of its own for every fault of the file.
            message = "the base model's tokenizer cannot be read"
            raise BaseModelInvalidError(message, file=tokenizer_file.name) from error
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Words``; padded on the right with token 0."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max(len(row) for row in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = torch.tensor(row)
            attention_mask[number, : len(row)] = 1
        return input_ids, attention_mask


def mini_clip_without_weights(config: Mapping[str, object], folder: Path) -> TwoTowers:
    """The model that a configuration describes, on torch's default device; its weights are of no use yet.

    Raises:
        BaseModelInvalidError: the configuration is not one of this model.
    """
    text = config.get("text_config")
    log_scale = config.get("log_scale")
    if not isinstance(text, Mapping) or not isinstance(log_scale, int | float) or not math.isfinite(log_scale):
        raise BaseModelInvalidError("the configuration of the base model is not that of a mini-CLIP")
    try:
        encoder = BertModel(BertConfig(**{str(key): value for key, value in text.items()}), add_pooling_layer=False)
    except (TypeError, ValueError, AttributeError) as error:
        message = "the libraries of this trainer cannot load the base model"
        raise BaseModelInvalidError(message, reason=type(error).__name__) from error
    return TwoTowers(
        image_tower=EfficientNetLite0(),
        text_tower=SentenceTower(encoder),
        image_projection=torch.nn.Linear(FEATURES, DIMENSION),
        text_projection=torch.nn.Linear(int(encoder.config.hidden_size), DIMENSION),
        words=WordPieces(folder / "tokenizer.json"),
        pixels=Pixels(size=IMAGE_SIZE, mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD)),
        log_scale=float(log_scale),
    )


def load_mini_clip(config: Mapping[str, object], folder: Path) -> TwoTowers:
    """Load the model of a folder.

    Raises:
        BaseModelInvalidError: configuration, tokenizer or weights are not those of a mini-CLIP.
    """
    model = mini_clip_without_weights(config, folder)
    try:
        model.load_state_dict(cast("dict[str, torch.Tensor]", load_file(folder / "model.safetensors")), strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        message = "the weights of the base model are not those of a mini-CLIP"
        raise BaseModelInvalidError(message, reason=type(error).__name__) from error
    return model
