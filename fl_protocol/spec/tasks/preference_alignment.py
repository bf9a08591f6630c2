"""``task: {kind: preference-alignment}``: a model learns to prefer one of two answers (DPO, Rafailov et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.instruction_tuning import Template
from fl_protocol.spec.tasks.task_spec import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceAlignment:
    """Of each record the chosen completion is to become likelier than the rejected one, beside the base alone.

    Attributes:
        beta: how much a ratio of likelihoods counts; a larger one holds the model nearer to its base.
    """

    template: Template
    beta: float

    @property
    def kind(self) -> TaskKind:
        """Preference alignment."""
        return TaskKind.PREFERENCE_ALIGNMENT

    @property
    def loss_unit(self) -> str:
        """Pairs."""
        return "pairs of completions"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"kind": self.kind.value, "template": self.template.value, "beta": self.beta}


def read_preference_alignment(section: Reader) -> PreferenceAlignment:
    """``{template=chat, beta=0.1}``."""
    return PreferenceAlignment(
        template=section.choice("template", Template, default=Template.CHAT),
        beta=section.number("beta", above=0, high=100.0, default=0.1),
    )
