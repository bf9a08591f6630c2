"""What every task kind says in ``task``. Knows no kind."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class TaskKind(StrEnum):
    """What is learned."""

    INSTRUCTION_TUNING = "instruction-tuning"
    PREFERENCE_ALIGNMENT = "preference-alignment"
    LANGUAGE_MODELLING = "language-modelling"
    CONCEPT_TIMELINE = "concept-timeline"
    CONCEPT_VOCABULARY = "concept-vocabulary"
    IMAGE_TEXT_ADAPTER = "image-text-adapter"
    IMAGE_TEXT_CONTRASTIVE = "image-text-contrastive"


class TaskSpec(Protocol):
    """``task``: a frozen value of the kind's own class."""

    @property
    def kind(self) -> TaskKind:
        """Which kind it is."""
        ...

    @property
    def loss_unit(self) -> str:
        """What the loss is a mean over, in the plural: ``completion tokens``."""
        ...

    def to_document(self) -> dict[str, object]:
        """The section as JSON values, ``kind`` among them."""
        ...
