"""What is learned: one file a task kind, and one row of the table a kind.

What a run says of its task is in ``fl_protocol/spec/tasks``; which records there are, in
``site_agent/training/formats``.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.spec.tasks import TaskKind
from site_agent.training.task_half import TaskHalf
from site_agent.training.tasks.concept_timeline import CONCEPT_TIMELINE
from site_agent.training.tasks.concept_vocabulary import CONCEPT_VOCABULARY
from site_agent.training.tasks.image_text_adapter import IMAGE_TEXT_ADAPTER
from site_agent.training.tasks.image_text_contrastive import IMAGE_TEXT_CONTRASTIVE
from site_agent.training.tasks.instruction_tuning import INSTRUCTION_TUNING
from site_agent.training.tasks.language_modelling import LANGUAGE_MODELLING
from site_agent.training.tasks.preference_alignment import PREFERENCE_ALIGNMENT

TASKS: Mapping[TaskKind, TaskHalf] = {
    TaskKind.INSTRUCTION_TUNING: INSTRUCTION_TUNING,
    TaskKind.PREFERENCE_ALIGNMENT: PREFERENCE_ALIGNMENT,
    TaskKind.LANGUAGE_MODELLING: LANGUAGE_MODELLING,
    TaskKind.CONCEPT_TIMELINE: CONCEPT_TIMELINE,
    TaskKind.CONCEPT_VOCABULARY: CONCEPT_VOCABULARY,
    TaskKind.IMAGE_TEXT_ADAPTER: IMAGE_TEXT_ADAPTER,
    TaskKind.IMAGE_TEXT_CONTRASTIVE: IMAGE_TEXT_CONTRASTIVE,
}
"""Every task kind that this trainer can do."""
