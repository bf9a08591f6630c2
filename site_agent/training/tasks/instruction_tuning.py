"""Instruction tuning: a record becomes a chat turn by the model's own template, and only the answer carries loss.

Knows no weights. Prompt and completion are tokenised apart, so that training sees the prompt as generation will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import (
    AdaptedModel,
    Tokenizer,
    layout_without_weights,
    load_adapted,
    load_tokenizer,
)
from site_agent.training.collate import Example
from site_agent.training.device import Compute
from site_agent.training.errors import ChatTemplateError
from site_agent.training.formats.prompt_jsonl import PromptRecord
from site_agent.training.task_half import EncodedRecord, EvaluatedBatch, Fit, LossSum, TaskHalf


class ChatEncoder:
    """Turns records into examples."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int) -> None:
        """Keep the tokenizer.

        Raises:
            ChatTemplateError: it has no chat template.
        """
        if not tokenizer.chat_template:
            raise ChatTemplateError("the base model's tokenizer has no chat template")
        self._tokenizer = tokenizer
        self._max_length = max_length

    def encode(self, record: PromptRecord) -> EncodedRecord:
        """Tokenise one record; a completion that is too long loses its end, a prompt is never cut.

        Raises:
            ChatTemplateError: the template renders a conversation that does not begin with its own prompt.
        """
        prompt = render_prompt(self._tokenizer, record.prompt)
        turns = [{"role": "user", "content": record.prompt}, {"role": "assistant", "content": record.completion}]
        whole = render_conversation(self._tokenizer, turns, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ChatTemplateError("the chat template does not begin an answered turn with its own prompt")
        prompt_ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        answer = self._up_to_end_of_turn(whole[len(prompt) :])
        completion_ids = self._tokenizer.encode(answer, add_special_tokens=False)
        room = self._max_length - len(prompt_ids)
        if room < 1 or not completion_ids:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        example = Example(prompt_ids=tuple(prompt_ids), completion_ids=tuple(completion_ids[:room]))
        return EncodedRecord(fit=Fit.WHOLE if len(completion_ids) <= room else Fit.CUT, example=example)

    def _up_to_end_of_turn(self, answer: str) -> str:
        """Leave out what the template writes after the end of the turn: generation stops there."""
        end = self._tokenizer.eos_token
        place = answer.rfind(end) if end else -1
        return answer if end is None or place < 0 else answer[: place + len(end)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChatTask:
    """A causal model with its adapter, and the encoder of its records. See ``LoadedTask``."""

    model: AdaptedModel
    encoder: ChatEncoder

    @property
    def module(self) -> torch.nn.Module:
        """The causal model."""
        return self.model.module

    @property
    def layout(self) -> AdapterLayout:
        """The adapter's."""
        return self.model.layout

    def encode(self, record: PromptRecord) -> EncodedRecord:
        """See ``ChatEncoder.encode``."""
        return self.encoder.encode(record)

    def train_loss(self, examples: Sequence[Example]) -> LossSum:
        """Summed over completion tokens."""
        return self.model.completion_loss(examples)

    def evaluate(self, examples: Sequence[Example]) -> EvaluatedBatch:
        """The loss alone."""
        answer = self.model.completion_loss(examples)
        return EvaluatedBatch(loss_sum=float(answer.loss), n_units=answer.n_units)


def load_chat_task(folder: Path, spec: RunSpec, compute: Compute) -> ChatTask:
    """Load the base and put the adapter on it.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``load_adapted``.
        ChatTemplateError: the base has no chat template.
    """
    model = load_adapted(folder, spec, compute)
    return ChatTask(model=model, encoder=ChatEncoder(model.tokenizer, max_length=spec.local.max_length))


def chat_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout, of a base that has a chat template.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``layout_without_weights``.
        ChatTemplateError: the base has no chat template, so that no site could train it.
    """
    if not load_tokenizer(folder).chat_template:
        raise ChatTemplateError("the base model's tokenizer has no chat template")
    return layout_without_weights(folder, spec)


def render_prompt(tokenizer: Tokenizer, question: str) -> str:
    """A question as the text that the model is to continue.

    Raises:
        ChatTemplateError: the template cannot render it.
    """
    turns = [{"role": "user", "content": question}]
    return render_conversation(tokenizer, turns, add_generation_prompt=True)


def render_conversation(tokenizer: Tokenizer, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as text.

    Raises:
        ChatTemplateError: the template cannot render it.
    """
    from jinja2 import TemplateError  # jinja2 renders chat templates; it comes with transformers

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        message = "the chat template cannot render a user's turn and an answer"
        raise ChatTemplateError(message, reason=type(error).__name__) from None


INSTRUCTION_TUNING = TaskHalf(formats=frozenset({"jsonl"}), load=load_chat_task, layout_without_weights=chat_layout)
"""The row of the table."""
