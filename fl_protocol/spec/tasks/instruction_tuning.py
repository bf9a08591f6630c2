"""``task: {kind: instruction-tuning}``: a causal language model learns to answer a prompt with a completion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.task_spec import TaskKind


class Template(StrEnum):
    """How a record becomes text."""

    CHAT = "chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionTuning:
    """Of each record the completion carries loss, and its prompt none."""

    template: Template

    @property
    def kind(self) -> TaskKind:
        """Instruction tuning."""
        return TaskKind.INSTRUCTION_TUNING

    @property
    def loss_unit(self) -> str:
        """Completion tokens."""
        return "completion tokens"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"kind": self.kind.value, "template": self.template.value}


def read_instruction_tuning(section: Reader) -> InstructionTuning:
    """``{template=chat}``."""
    return InstructionTuning(template=section.choice("template", Template, default=Template.CHAT))
