"""A release of an adapter behind two towers, for whoever downloaded its folder: loaded, checked, and used.

Knows no site and no round. What it needs beside the release is the base model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.tasks.image_text_adapter import ImageTextAdapter
from fl_protocol.spec.tasks.image_text_contrastive import ImageTextContrastive
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import load_adapter
from site_agent.training.clip.adapted import AdaptedTowers
from site_agent.training.clip.preparation import prepare_pixels
from site_agent.training.contrastive.zero_shot import Ensemble, class_logits, prompt_logits
from site_agent.training.device import choose_compute
from site_agent.training.errors import AdapterUnreadableError
from site_agent.training.images.decode import decode_image
from site_agent.training.model_files import verify_model_folder
from site_agent.training.released_weights import read_released_spec, read_released_weights
from site_agent.training.tasks.image_text import PromptBank, embed_prompts, load_adapted_towers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReleasedTowers:
    """A base with a released adapter behind it, and the run's classes."""

    module: AdaptedTowers
    task: ImageTextAdapter | ImageTextContrastive
    bank: PromptBank

    def classify(self, images: Sequence[Path], *, frame: int = 0) -> list[dict[str, float]]:
        """For each image file the share of each class, by the run's prompts; the shares of an image sum to 1.

        Raises:
            ImageRefusedError, ImageUndecodableError: a file is none that can be looked at.
        """
        towers = self.module.towers
        answers: list[dict[str, float]] = []
        for path in images:
            pixels = prepare_pixels(decode_image(path.read_bytes(), frame=frame), towers.pixels)
            with torch.no_grad():
                embedding = self.module.images(self.module.image_embeddings(towers.image_features(pixels[None])))
                texts = self.module.texts(self.bank.embeddings)
                logits = prompt_logits(embedding, texts, scale=self.module.scale())
                of_classes = class_logits(logits, self.bank.places, ensemble=Ensemble(self.task.ensemble.value))
            shares = torch.softmax(of_classes[0].double(), dim=0).tolist()
            answers.append({one.name: share for one, share in zip(self.task.classes, shares, strict=True)})
        return answers


def load(folder: Path, *, base: Path) -> ReleasedTowers:
    """Load a release onto its base model.

    Args:
        folder: the release.
        base: the base model's folder, which must be the one that the run names.

    Raises:
        AdapterUnreadableError: the folder holds no release of an adapter behind towers.
        BaseModelError: the base is another one, or cannot be loaded.
    """
    spec = read_released_spec(folder)
    if not isinstance(spec.task, ImageTextAdapter | ImageTextContrastive):
        raise AdapterUnreadableError("the release is not of a task on images and texts", task=spec.task.kind.value)
    verify_model_folder(base, spec.base_model.sha256)
    module, layout = load_adapted_towers(base, spec, choose_compute(DeviceChoice.AUTO))
    load_adapter(module, read_released_weights(folder, spec.adapter.kind), layout=layout)
    return ReleasedTowers(module=module, task=spec.task, bank=embed_prompts(module, spec.task.classes))
