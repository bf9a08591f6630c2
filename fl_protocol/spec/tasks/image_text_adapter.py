"""``task: {kind: image-text-adapter}``: FedCLIP, an adapter behind a frozen image tower learns to meet class prompts.

Source: Lu, Hu, Wang, Xie, *FedCLIP* (arXiv 2302.13485). Decision 43.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.prompt_bank import ImageClass, read_classes
from fl_protocol.spec.tasks.task_spec import TaskKind


class PairTargets(StrEnum):
    """Which texts of a batch match an image: its own alone, or those of its class alike."""

    DIAGONAL = "diagonal"
    SAME_CLASS = "same_class"


class PromptEnsemble(StrEnum):
    """How the prompts of a class are put together: the mean of their logits, or the largest."""

    MEAN = "mean"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTextAdapter:
    """Images with one label each."""

    classes: tuple[ImageClass, ...]
    targets: PairTargets
    ensemble: PromptEnsemble

    @property
    def kind(self) -> TaskKind:
        """Image-text adapter."""
        return TaskKind.IMAGE_TEXT_ADAPTER

    @property
    def loss_unit(self) -> str:
        """Images."""
        return "images"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "kind": self.kind.value,
            "classes": [one.to_document() for one in self.classes],
            "targets": self.targets.value,
            "ensemble": self.ensemble.value,
        }


def read_image_text_adapter(section: Reader) -> ImageTextAdapter:
    """``{classes, targets=diagonal, ensemble=mean}``."""
    return ImageTextAdapter(
        classes=read_classes(section, have_terms=False),
        targets=section.choice("targets", PairTargets, default=PairTargets.DIAGONAL),
        ensemble=section.choice("ensemble", PromptEnsemble, default=PromptEnsemble.MEAN),
    )
