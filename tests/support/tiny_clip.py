"""A CLIP so small that a test makes it: two layers each side, 16 dimensions, random weights from a fixed seed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIMENSION = 16
IMAGE_SIZE = 32


def make_tiny_clip(folder: Path) -> None:
    """Write a ``CLIPModel`` and a byte-level tokenizer that marks begin and end into ``folder``."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    small = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**small, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=DIMENSION,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(20240301)
    model = CLIPModel(config)
    torch.random.set_rng_state(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(torch.float32).save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(str(folder))


def write_image_dataset(
    folder: Path, labels: list[str], *, seed: int = 1, brightness: int = 0, header: str = "image,label,patient_id"
) -> Path:
    """Images whose colour tells their label, with noise, and their manifest. One patient an image."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    colours = {"red cell": (200, 60, 60), "white cell": (90, 60, 190), "platelet": (60, 190, 90)}
    rows = [header]
    for number, label in enumerate(labels):
        colour = np.array(colours[label]) + brightness
        pixels = generator.normal(colour, 25, size=(36, 40, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label},p{number}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def write_text_dataset(folder: Path, texts: list[str]) -> Path:
    """Texts without labels, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.csv"
    rows = [f"t{number},{json.dumps(text)}" for number, text in enumerate(texts)]
    path.write_text("\n".join(["id,text", *rows]) + "\n")
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte between a begin and an end, as CLIP's own tokenizer puts them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # The end is not token 2: transformers takes that number for old checkpoints, whose end is the largest token.
    marks = ["<|pad|>", "<|begin|>", "<|unused|>", "<|end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*marks, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>",
        special_tokens=[("<|begin|>", vocabulary["<|begin|>"]), ("<|end|>", vocabulary["<|end|>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>"
    )
