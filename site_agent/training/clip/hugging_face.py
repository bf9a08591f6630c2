"""Any ``CLIPModel`` in a folder of Hugging Face as a base. Nothing is fetched and no code of the folder is run.

Images are prepared as CLIP's authors do it, with the size that the configuration names: ``preprocessor_config.json`` is
not part of the digest that identifies a base, so a folder whose file says otherwise is refused, not followed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from site_agent.training.clip.towers import Pixels, TwoTowers
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.transformers_loading import load_or_explain, load_whole

MODEL_TYPE = "clip"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP (arXiv 2103.00020; the authors' program): of the three channels, values in [0, 1]."""

_PREPARATION_FILE = "preprocessor_config.json"


class VisionTower(torch.nn.Module):
    """A CLIP's vision model, up to its projection."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape (batch, D_v)."""
        return cast("torch.Tensor", self.model(pixel_values=pixels).pooler_output)


class LanguageTower(torch.nn.Module):
    """A CLIP's text model, up to its projection."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Shape (batch, D_t)."""
        return cast("torch.Tensor", self.model(input_ids=input_ids, attention_mask=attention_mask).pooler_output)


class ClipWords:
    """A CLIP's own tokenizer, cut at the positions that its text model has."""

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        """Read it.

        Raises:
            BaseModelInvalidError: transformers cannot read it.
        """
        self._tokenizer = load_or_explain(
            lambda: AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        )
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Words``."""
        rows = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        return rows["input_ids"], rows["attention_mask"]


def load_clip(folder: Path) -> TwoTowers:
    """Load a CLIP in float32.

    Raises:
        BaseModelInvalidError: transformers cannot load it whole, or its images are prepared in another way.
    """
    _check_preparation(folder)
    model = load_whole(
        lambda: CLIPModel.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    )
    return _towers(model, folder)


def clip_without_weights(folder: Path) -> TwoTowers:
    """The model that a folder's configuration describes, on torch's default device; its weights are of no use.

    Raises:
        BaseModelInvalidError: as ``load_clip``.
    """
    config = load_or_explain(lambda: CLIPConfig.from_pretrained(str(folder), local_files_only=True))
    return _towers(load_or_explain(lambda: CLIPModel(config)), folder)


def _towers(model: CLIPModel, folder: Path) -> TwoTowers:
    config = model.config
    return TwoTowers(
        image_tower=VisionTower(model.vision_model),
        text_tower=LanguageTower(model.text_model),
        image_projection=model.visual_projection,
        text_projection=model.text_projection,
        words=ClipWords(folder, max_tokens=int(config.text_config.max_position_embeddings)),
        pixels=Pixels(size=int(config.vision_config.image_size), mean=MEAN, std=STD),
        log_scale=math.nan if model.logit_scale.is_meta else float(model.logit_scale.detach()),
    )


def _check_preparation(folder: Path) -> None:
    path = folder / _PREPARATION_FILE
    if not path.is_file():
        return
    try:
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelInvalidError("a file of the base model is no JSON", file=path.name) from error
    named = document if isinstance(document, dict) else {}
    for key, expected in (("image_mean", MEAN), ("image_std", STD)):
        found = named.get(key, list(expected))
        numbers = [value for value in found if isinstance(value, int | float)] if isinstance(found, list) else []
        if len(numbers) != 3 or any(abs(a - b) > 1e-6 for a, b in zip(numbers, expected, strict=True)):
            message = "the base model prepares its images in another way than CLIP does"
            raise BaseModelInvalidError(message, file=path.name, field=key)
