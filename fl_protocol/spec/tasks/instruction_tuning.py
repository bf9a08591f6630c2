"""``task: {kind: instruction-tuning}``: a causal language model learns to answer a prompt with a completion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.task_spec import TaskKind


class Template(StrEnum):
    """How a record becomes text."""

    CHAT = "chat"
    """By the base model's own chat template."""
    ALPACA = "alpaca"
    """By Alpaca's form, for bases that know no chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionTuning:
    """Of each record the completion carries loss, and its prompt none.

    Attributes:
        packing: whether the records of a batch stand behind each other in one row, which gives the same loss: True
            demands it, False forbids it, and None, which is in no document, takes it where the model permits it.
    """

    template: Template
    packing: bool | None = None

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
        document: dict[str, object] = {"kind": self.kind.value, "template": self.template.value}
        return document if self.packing is None else {**document, "packing": self.packing}


def read_instruction_tuning(section: Reader) -> InstructionTuning:
    """``{template=chat, packing=null}``."""
    return InstructionTuning(
        template=section.choice("template", Template, default=Template.CHAT), packing=section.switch("packing")
    )
