"""``task: {kind: image-text-contrastive}``: MedCLIP, images and texts meet by their labels, not as pairs.

Source: Wang, Wu, Agarwal, Sun, *MedCLIP* (arXiv 2210.10163). Decision 44.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.image_text_adapter import PromptEnsemble
from fl_protocol.spec.tasks.prompt_bank import ImageClass, read_classes
from fl_protocol.spec.tasks.task_spec import TaskKind


class LabelSimilarity(StrEnum):
    """How alike two records' labels are: by their cosine (the paper), or by their product (the authors' program)."""

    COSINE = "cosine"
    DOT = "dot"


class Labeller(StrEnum):
    """How a text gets its labels where its record has none."""

    LEXICON = "lexicon"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTextContrastive:
    """Images with labels, texts, or both; a site may have either."""

    classes: tuple[ImageClass, ...]
    similarity: LabelSimilarity
    labeller: Labeller
    ensemble: PromptEnsemble

    @property
    def kind(self) -> TaskKind:
        """Image-text contrastive."""
        return TaskKind.IMAGE_TEXT_CONTRASTIVE

    @property
    def loss_unit(self) -> str:
        """Images and texts."""
        return "images and texts"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "kind": self.kind.value,
            "classes": [one.to_document() for one in self.classes],
            "similarity": self.similarity.value,
            "labeller": self.labeller.value,
            "ensemble": self.ensemble.value,
        }


def read_image_text_contrastive(section: Reader) -> ImageTextContrastive:
    """``{classes, similarity=cosine, labeller=lexicon, ensemble=mean}``."""
    return ImageTextContrastive(
        classes=read_classes(section, have_terms=True),
        similarity=section.choice("similarity", LabelSimilarity, default=LabelSimilarity.COSINE),
        labeller=section.choice("labeller", Labeller, default=Labeller.LEXICON),
        ensemble=section.choice("ensemble", PromptEnsemble, default=PromptEnsemble.MEAN),
    )
