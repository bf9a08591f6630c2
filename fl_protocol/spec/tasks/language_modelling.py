"""``task: {kind: language-modelling}``: a causal language model learns to continue plain text, every token of it."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.task_spec import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelling:
    """Every token of a record carries loss, and so does its end."""

    @property
    def kind(self) -> TaskKind:
        """Language modelling."""
        return TaskKind.LANGUAGE_MODELLING

    @property
    def loss_unit(self) -> str:
        """Tokens."""
        return "tokens"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"kind": self.kind.value}


def read_language_modelling(_section: Reader) -> LanguageModelling:
    """It has no keys of its own."""
    return LanguageModelling()
