"""Instruction tuning: a record becomes a turn by the run's template, and only the answer carries loss."""

from __future__ import annotations

from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.instruction_tuning import InstructionTuning, Template
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import Tokenizer, load_adapted
from site_agent.training.device import Compute
from site_agent.training.formats.text_files import PROMPT_FORMATS
from site_agent.training.task_half import EncodedRecord, TaskHalf
from site_agent.training.tasks.completion_task import CompletionTask
from site_agent.training.tasks.text_tasks import TurnEncoder, templated_layout
from site_agent.training.text_records import PromptRecord


class PromptEncoder:
    """Turns records into examples."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, template: Template = Template.CHAT) -> None:
        """Keep the tokenizer.

        Raises:
            ChatTemplateError: it lacks what the template needs.
        """
        self._turns = TurnEncoder(tokenizer, template, max_length=max_length)

    def encode(self, record: PromptRecord) -> EncodedRecord:
        """Tokenise one record; a completion that is too long loses its end, a prompt is never cut.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        fit, example = self._turns.encode(record.prompt, record.completion)
        return EncodedRecord(fit=fit, example=example)


def load_prompt_task(folder: Path, spec: RunSpec, compute: Compute) -> CompletionTask:
    """Load the base and put the adapter on it.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``load_adapted``.
        ChatTemplateError: the base lacks what the template needs.
        PackingUnavailableError: the run demands packed rows, and this base or adapter does not permit them.
    """
    task = _task_of(spec)
    model = load_adapted(folder, spec, compute, packing=task.packing)
    encoder = PromptEncoder(model.tokenizer, max_length=spec.local.max_length, template=task.template)
    return CompletionTask(model=model, encoder=encoder)


def prompt_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout. See ``templated_layout``."""
    return templated_layout(folder, spec, _task_of(spec).template)


def _task_of(spec: RunSpec) -> InstructionTuning:
    assert isinstance(spec.task, InstructionTuning), "the table says so"
    return spec.task


INSTRUCTION_TUNING = TaskHalf(
    formats=frozenset(PROMPT_FORMATS), load=load_prompt_task, layout_without_weights=prompt_layout, is_shared=True
)
"""The row of the table."""
