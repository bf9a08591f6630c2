"""Task kinds as a RunSpec says them. A new kind is one file here and one row in the table.

Its trainer's half is one file in ``site_agent/training/tasks`` and one row in the table there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.concept_timeline import read_concept_timeline
from fl_protocol.spec.tasks.concept_vocabulary import read_concept_vocabulary
from fl_protocol.spec.tasks.image_text_adapter import read_image_text_adapter
from fl_protocol.spec.tasks.image_text_contrastive import read_image_text_contrastive
from fl_protocol.spec.tasks.instruction_tuning import read_instruction_tuning
from fl_protocol.spec.tasks.language_modelling import read_language_modelling
from fl_protocol.spec.tasks.preference_alignment import read_preference_alignment
from fl_protocol.spec.tasks.task_spec import TaskKind, TaskSpec

__all__ = ["TASK_READERS", "TaskKind", "TaskSpec"]

TASK_READERS: Mapping[TaskKind, Callable[[Reader], TaskSpec]] = {
    TaskKind.INSTRUCTION_TUNING: read_instruction_tuning,
    TaskKind.PREFERENCE_ALIGNMENT: read_preference_alignment,
    TaskKind.LANGUAGE_MODELLING: read_language_modelling,
    TaskKind.CONCEPT_TIMELINE: read_concept_timeline,
    TaskKind.CONCEPT_VOCABULARY: read_concept_vocabulary,
    TaskKind.IMAGE_TEXT_ADAPTER: read_image_text_adapter,
    TaskKind.IMAGE_TEXT_CONTRASTIVE: read_image_text_contrastive,
}
"""Reads the rest of a section ``task`` whose ``kind`` is known."""
